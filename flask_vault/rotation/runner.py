"""Rotates fields of a document: a backup first, then one check-and-set write."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t
import uuid

from ..errors import AlreadyRotatedError
from ..errors import CheckAndSetError
from ..errors import RotationError
from ..errors import SecretFieldError
from ..errors import UnfinishedRotationError
from ..vault.documents import Document
from ..vault.documents import Location
from ..vault.kv import KV
from ..vault.updates import update
from .backup import BackupStore
from .envelope import Backup
from .steps import reach


@dataclasses.dataclass(frozen=True)
class Target:
    """Fields of one document that are rotated together, in one new version.

    :param label: the reference's path, for people and for the backup's name.
    :param makers: for each field, what makes its new value.
    """

    location: Location
    label: str
    makers: cabc.Mapping[str, cabc.Callable[[], t.Any]] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Rotated:
    """A rotation that was done."""

    operation: str
    location: Location
    label: str
    fields: tuple[str, ...]
    #: The document as it is now.
    document: Document
    previous_version: int | None
    #: Name of the backup file, ``None`` when none was wanted.
    backup: str | None

    @property
    def version(self) -> int | None:
        """The version that holds the new values; ``None`` on KV v1."""
        return self.document.version


class Runner:
    """Runs rotations of values that live in Vault only.

    :param backups: where the old document goes before it is replaced; ``None`` makes
        no backup.
    :param namespace: noted in the backup, and compared when one is restored.
    """

    def __init__(
        self, kv: KV, backups: BackupStore | None, namespace: str | None
    ) -> None:
        self._kv = kv
        self._backups = backups
        self._namespace = namespace

    def rotate(self, target: Target, seen: Document | None = None) -> Rotated:
        """Replace the values of a target's fields.

        Killed at any instant, it leaves the old value or the new one in Vault, and both
        in the backup.

        :param seen: the document as it was read a moment ago, which spares a request.
        :raises BackupError: when no backup could be made; nothing was changed.
        :raises AlreadyRotatedError: when somebody else changed one of the fields
            meanwhile.
        :raises SecretFieldError: when the document has no such field yet.
        """
        if self._backups is not None:
            self._backups.check()

        before = seen or self._kv.read(target.location)
        missing = [name for name in target.makers if name not in before.data]

        if missing:
            raise SecretFieldError(
                f"The document {before.path!r} has no field {missing[0]!r} to rotate:"
                " make it with 'flask vault init' or 'flask vault set'.",
                path=before.path,
            )

        new = {name: make() for name, make in target.makers.items()}
        unchanged = [name for name in new if new[name] == before.data[name]]

        if unchanged:
            raise AlreadyRotatedError(
                f"The new value of {before.path!r}, field {unchanged[0]!r}, is the old"
                " one: nothing was changed.",
                path=before.path,
            )

        return self._replace(target.location, target.label, before, new)

    def restore(self, backup: Backup, location: Location, label: str) -> Rotated:
        """Bring back the values that a rotation replaced.

        The fields that the rotation changed get their old values, in a new version; the
        document's other fields stay as they are now. A document that is gone comes back
        whole. What is replaced goes into a backup of its own.

        :raises RotationError: when the backup is of another path or namespace.
        :raises AlreadyRotatedError: when the old values are there already.
        """
        header = backup.header

        if header.path != location.path or header.namespace != self._namespace:
            raise RotationError(
                f"The backup {backup.name!r} is of {header.path!r} in the namespace"
                f" {header.namespace!r}, not of {location.path!r} in"
                f" {self._namespace!r}: it is not restored.",
                path=location.path,
            )

        if self._backups is not None:
            self._backups.check()

        before = self._kv.newest(location)
        names = header.fields if before.data else tuple(backup.before)
        old = {name: backup.before[name] for name in names if name in backup.before}

        if not old:
            raise RotationError(
                f"The backup {backup.name!r} is of a document that had none of its"
                " fields yet: there is nothing to bring back.",
                path=location.path,
            )

        if all(name in before.data and before.data[name] == old[name] for name in old):
            raise AlreadyRotatedError(
                f"The document {location.path!r} holds the values of the backup"
                f" {backup.name!r} already: nothing was changed.",
                path=location.path,
            )

        return self._replace(location, label, before, old)

    # --- parts -----------------------------------------------------------------------

    def _replace(
        self,
        location: Location,
        label: str,
        before: Document,
        new: cabc.Mapping[str, t.Any],
    ) -> Rotated:
        reach("started")
        operation = uuid.uuid4().hex
        base, kept = before, None

        def put(present: Document) -> cabc.Mapping[str, t.Any]:
            nonlocal base, kept

            if any(present.data.get(f) != before.data.get(f) for f in new):
                raise AlreadyRotatedError(
                    f"The document {location.path!r} was rotated by somebody else"
                    " meanwhile: nothing was changed by this run.",
                    path=location.path,
                )

            # Another field may have been written. Ours go on top of it.
            base, after = present, {**present.data, **new}
            kept = self._back_up(operation, label, present, after, tuple(new))
            reach("backed up")
            return after

        try:
            document = update(self._kv, location, put, seen=before)
        except CheckAndSetError:
            raise UnfinishedRotationError(
                f"The document {location.path!r} is written so often that each try lost"
                " the race: nothing was changed. Try again later.",
                path=location.path,
            ) from None

        reach("done")
        return Rotated(
            operation, location, label, tuple(new), document, base.version, kept
        )

    def _back_up(
        self,
        operation: str,
        label: str,
        before: Document,
        after: cabc.Mapping[str, t.Any],
        fields: tuple[str, ...],
    ) -> str | None:
        if self._backups is None:
            return None

        backup = self._backups.write(
            operation=operation,
            path=before.path,
            label=label,
            namespace=self._namespace,
            fields=fields,
            from_version=before.version,
            before=before.data,
            after=after,
            kv_version=1 if before.version is None else 2,
        )
        return backup.name
