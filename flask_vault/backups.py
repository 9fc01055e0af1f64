"""The backups of an app, as its settings say."""

from __future__ import annotations

from .errors import BackupError
from .rotation.backup import BackupStore
from .settings import Settings
from .vault.transit import TransitKey
from .vault.transport import Transport


def open_backups(settings: Settings, transport: Transport | None) -> BackupStore:
    """The backups in ``VAULT_BACKUP_DIR``.

    :param transport: the way to ``VAULT_BACKUP_TRANSIT_KEY``; ``None`` when
        ``VAULT_ENABLED`` is false. Then the other keys open what they can.
    :raises BackupError: when the directory is unset.
    """
    if settings.backup_dir is None:
        raise BackupError(
            "VAULT_BACKUP_DIR is unset: set it to a directory that only this user can"
            " read."
        )

    key = settings.backup_transit_key
    wrapper = None

    if key is not None and transport is not None:
        wrapper = TransitKey(transport, key)

    return BackupStore(settings.backup_dir, settings.backup_keys, wrapper)
