"""Checks of the place where a rotation puts what it replaces."""

from __future__ import annotations

import collections.abc as cabc
import os
import pathlib

from ..errors import VaultError
from ..rotation.backup import BackupStore
from .case import Case
from .findings import Finding
from .findings import of_error


def backups(case: Case) -> cabc.Iterator[Finding]:
    if not case.rotates:
        return

    settings = case.settings
    directory = settings.backup_dir or pathlib.Path(case.app.instance_path)

    if not settings.backup_keys:
        yield Finding(
            "backups",
            "warn",
            "there is no VAULT_BACKUP_KEYS, and 'rotate' changes nothing without a"
            " backup.",
            "Make one with 'flask vault backup-key', and keep it outside of Vault.",
        )
        return

    try:
        store = BackupStore(directory, settings.backup_keys)

        if not directory.exists():
            yield _of_missing(directory)
            return

        store.check()
        closed = [info.name for info in store.list() if info.problem is not None]
    except VaultError as error:
        yield of_error("backups", error)
        return

    if closed:
        yield Finding(
            "backups",
            "warn",
            f"{len(closed)} of the files in {str(directory)!r} cannot be restored.",
            "Put the key that made them into VAULT_BACKUP_KEYS, after the new one:"
            " 'flask vault rotate --list-backups' says which.",
        )
    else:
        yield Finding(
            "backups", "pass", f"{str(directory)!r} takes a backup, and opens it"
        )


def _of_missing(directory: pathlib.Path) -> Finding:
    """It is made by the first rotation, and not by somebody who only looks."""
    above = next(parent for parent in directory.parents if parent.exists())

    if os.access(above, os.W_OK | os.X_OK):
        return Finding(
            "backups", "pass", f"{str(directory)!r} is made by the first rotation"
        )

    return Finding(
        "backups",
        "fail",
        f"{str(directory)!r} is not there, and {str(above)!r} cannot be written to.",
        "Make it for who rotates, with mode 0700, or set VAULT_BACKUP_DIR.",
    )
