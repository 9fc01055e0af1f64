"""Secrets from HashiCorp Vault or OpenBao for Flask."""

from __future__ import annotations

import importlib
import typing as t

from .errors import AlreadyRotatedError
from .errors import BackupError
from .errors import CheckAndSetError
from .errors import RotationError
from .errors import SecretFieldError
from .errors import SecretNotFoundError
from .errors import SecretValueError
from .errors import SecretVersionError
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
from .signals import secret_rotated
from .signals import secrets_loaded

if t.TYPE_CHECKING:
    from .client import VaultClient
    from .entries import Reference
    from .entries import Rotation
    from .entries import Secret
    from .rotation.runner import Rotated

__all__ = [
    "AlreadyRotatedError",
    "BackupError",
    "CheckAndSetError",
    "FlaskVault",
    "Reference",
    "Rotated",
    "Rotation",
    "RotationError",
    "Secret",
    "SecretFieldError",
    "SecretNotFoundError",
    "SecretValueError",
    "SecretVersionError",
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
    "secret_rotated",
    "secrets_loaded",
]

#: Names that are imported when they are asked for. ``flask --help`` imports every app's
#: extensions, and needs none of them.
_LATE: t.Final = {
    "VaultClient": "client",
    "Reference": "entries",
    "Rotation": "entries",
    "Secret": "entries",
    "Rotated": "rotation.runner",
}


def __getattr__(name: str) -> t.Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
