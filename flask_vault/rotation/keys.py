"""The keys of ``VAULT_BACKUP_KEYS``, which seal what is kept outside of Vault."""

from __future__ import annotations

import base64
import collections.abc as cabc
import re
import secrets

from ..errors import VaultConfigError

_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")


def new_key() -> str:
    """Make a key for ``VAULT_BACKUP_KEYS``: 32 random bytes, URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii")


def parse_keys(keys: cabc.Sequence[str]) -> list[bytes]:
    """Read the keys; the first seals, all open.

    :raises VaultConfigError: when one cannot be a key. It is not shown.
    """
    if isinstance(keys, str):
        raise VaultConfigError(
            "VAULT_BACKUP_KEYS must be a list of keys, not one string. In an"
            """ environment variable a list is written as '["KEY"]'."""
        )

    parsed: list[bytes] = []

    for index, key in enumerate(keys):
        if not isinstance(key, str) or not _KEY.fullmatch(key.strip()):
            raise VaultConfigError(
                f"VAULT_BACKUP_KEYS[{index}] is not a key: it must be 32 bytes as"
                " URL-safe base64, which is 44 characters. 'flask vault backup-key'"
                " makes one."
            )

        parsed.append(base64.urlsafe_b64decode(key.strip()))

    return parsed
