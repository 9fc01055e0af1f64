"""Secrets from HashiCorp Vault or OpenBao for Flask."""

from __future__ import annotations

import importlib
import typing as t

if t.TYPE_CHECKING:
    from .client import VaultClient
    from .entries import Reference
    from .entries import Rotation
    from .entries import Secret
    from .errors import AlreadyRotatedError
    from .errors import BackupError
    from .errors import CheckAndSetError
    from .errors import RotationError
    from .errors import SecretFieldError
    from .errors import SecretNotFoundError
    from .errors import SecretValueError
    from .errors import SecretVersionError
    from .errors import UnfinishedRotationError
    from .errors import VaultConfigError
    from .errors import VaultConnectionError
    from .errors import VaultError
    from .errors import VaultLoginError
    from .errors import VaultNotInitializedError
    from .errors import VaultPermissionError
    from .errors import VaultRateLimitedError
    from .errors import VaultResponseError
    from .errors import VaultSealedError
    from .errors import VaultTLSError
    from .errors import VaultUnavailableError
    from .extension import FlaskVault
    from .extension import get_secret
    from .extension import get_vault_client
    from .keyring import Key
    from .keyring import KeyRing
    from .rotation.runner import Rotated
    from .signals import keyring_advanced
    from .signals import refresh_failed
    from .signals import refresh_recovered
    from .signals import secret_rotated
    from .signals import secrets_loaded
    from .state import Refreshed

__all__ = [
    "AlreadyRotatedError",
    "BackupError",
    "CheckAndSetError",
    "FlaskVault",
    "Key",
    "KeyRing",
    "Reference",
    "Refreshed",
    "Rotated",
    "Rotation",
    "RotationError",
    "Secret",
    "SecretFieldError",
    "SecretNotFoundError",
    "SecretValueError",
    "SecretVersionError",
    "UnfinishedRotationError",
    "VaultClient",
    "VaultConfigError",
    "VaultConnectionError",
    "VaultError",
    "VaultLoginError",
    "VaultNotInitializedError",
    "VaultPermissionError",
    "VaultRateLimitedError",
    "VaultResponseError",
    "VaultSealedError",
    "VaultTLSError",
    "VaultUnavailableError",
    "get_secret",
    "get_vault_client",
    "keyring_advanced",
    "refresh_failed",
    "refresh_recovered",
    "secret_rotated",
    "secrets_loaded",
]

#: Where each name is from. It is imported when it is asked for: every ``flask`` command
#: and every pytest run in an environment imports this package, and few of them need it.
_HOMES: t.Final = {
    "AlreadyRotatedError": "errors",
    "BackupError": "errors",
    "CheckAndSetError": "errors",
    "FlaskVault": "extension",
    "Key": "keyring",
    "KeyRing": "keyring",
    "Reference": "entries",
    "Refreshed": "state",
    "Rotated": "rotation.runner",
    "Rotation": "entries",
    "RotationError": "errors",
    "Secret": "entries",
    "SecretFieldError": "errors",
    "SecretNotFoundError": "errors",
    "SecretValueError": "errors",
    "SecretVersionError": "errors",
    "UnfinishedRotationError": "errors",
    "VaultClient": "client",
    "VaultConfigError": "errors",
    "VaultConnectionError": "errors",
    "VaultError": "errors",
    "VaultLoginError": "errors",
    "VaultNotInitializedError": "errors",
    "VaultPermissionError": "errors",
    "VaultRateLimitedError": "errors",
    "VaultResponseError": "errors",
    "VaultSealedError": "errors",
    "VaultTLSError": "errors",
    "VaultUnavailableError": "errors",
    "get_secret": "extension",
    "get_vault_client": "extension",
    "keyring_advanced": "signals",
    "refresh_failed": "signals",
    "refresh_recovered": "signals",
    "secret_rotated": "signals",
    "secrets_loaded": "signals",
}


def __getattr__(name: str) -> t.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
