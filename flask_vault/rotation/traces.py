"""What earlier runs left behind of an operation: in older versions, and in backups."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import VaultError
from ..vault.documents import Document
from ..vault.kv import KV
from .backup import BackupStore
from .journal import Record
from .journal import record_of
from .journal import visible
from .tasks import Task

#: In so many versions an operation is looked for that vanished from the document.
_LOOK_BACK: t.Final = 3


def last_operation(kv: KV, task: Task, document: Document) -> str | None:
    """The operation that was ended by the write of a document's newest version.

    ``None`` when others wrote since then.
    """
    version = (document.version or 0) - 1
    record = _record_at(kv, task, version) if version > 0 else None
    return None if record is None else record.operation


def way_back(kv: KV, task: Task, document: Document) -> str:
    """Where an operation is that vanished from a document without an end.

    :return: sentences that name the version and the commands, with a space before them;
        empty when there is no such operation.
    """
    newest = document.version or 0

    for version in range(newest - 1, max(0, newest - 1 - _LOOK_BACK), -1):
        found = _record_at(kv, task, version)

        if found is None:
            continue

        # A promoted one is at its end, and so is all that was before it.
        if found.state not in ("PREPARED", "APPLYING"):
            return ""

        mount = kv.mount_of(task.location).name
        path = document.path[len(mount) + 1 :]
        return (
            f" Version {version} of it has an open rotation, the operation"
            f" {found.operation} in the state {found.state}. To go on with that: 'vault"
            f" kv rollback -mount={mount} -version={version} {path}', then 'flask vault"
            f" rotate --secret {task.label} --resume'."
        )

    return ""


def back_up_once(
    backups: BackupStore,
    label: str,
    namespace: str | None,
    document: Document,
    record: Record,
) -> str:
    """Back up both values, unless a run that was cut off has done it.

    :return: the name of the file.
    :raises BackupError: when it cannot be written.
    """
    pending = record.pending or {}
    before = visible(document.data)

    for info in backups.list():
        if info.header is None or info.header.operation != record.operation:
            continue

        try:
            found = backups.read(info.name)
        except VaultError:
            continue

        if all(found.after.get(name) == value for name, value in pending.items()):
            return info.name

    return backups.write(
        operation=record.operation,
        path=document.path,
        label=label,
        namespace=namespace,
        fields=tuple(pending),
        from_version=document.version,
        before=before,
        after={**before, **pending},
        kv_version=2,
    ).name


def _record_at(kv: KV, task: Task, version: int) -> Record | None:
    try:
        document = kv.read(dataclasses.replace(task.location, version=version))
        return record_of(document.data, task.field)
    except VaultError:
        return None
