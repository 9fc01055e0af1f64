"""One rotation of a value that is in use outside of Vault, too, step by step.

It is a chain of check-and-set writes of one document (see
:mod:`flask_vault.rotation.journal`). It may be killed at any instant, and whoever comes
next goes on, at the same time as others if need be: a step is done by reading where the
rotation stands, doing what is next, and writing that it is done.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import time
import typing as t
import uuid

from ..errors import AlreadyRotatedError
from ..errors import RotationError
from ..errors import SecretFieldError
from ..errors import VaultError
from ..vault.documents import Document
from .journal import Fields
from .journal import promoted
from .journal import Record
from .journal import record_of
from .journal import State
from .journal import with_record
from .journal import without_record
from .rotators import Job
from .rotators import NotYet
from .rotators import Rejected
from .standing import GIVING_UP
from .standing import new_nonce
from .standing import same
from .standing import Standing
from .standing import Superseded
from .steps import reach
from .tasks import Task
from .traces import back_up_once
from .traces import last_operation
from .traces import way_back

#: So many values are made when the target refuses them.
_MOST_VALUES: t.Final = 3


class Run(Standing):
    """One task of a run."""

    def go_on(self) -> float | None:
        """Do whatever can be done now.

        :return: seconds after which there is more to do; ``None`` when it is over.
        """
        try:
            if self.state == "nothing open":
                reach("started")

            while not self._over:
                if (seconds := self._step()) is not None:
                    return seconds
        except VaultError as error:
            self._fail(error)
        except (NotYet, Rejected) as error:
            self._fail(self._unfinished(str(error)))

        return None

    def abort(self, force: bool) -> None:
        try:
            self._abort(force)
        except VaultError as error:
            self._fail(error)
        except (NotYet, Rejected) as error:
            self._fail(self._unfinished(str(error)))
        except Superseded:
            self._fail(self._unfinished("another process goes on with it"))

    # --- where it stands -------------------------------------------------------------

    def _step(self) -> float | None:
        document, record = self._look()

        if record is None:
            self._without_record(document)
            return None

        if self.operation is None:
            self.operation = record.operation
            self.joined = True
        elif self.operation != record.operation:
            # Ours ended, and somebody began another one.
            self._end_by_others(document)
            return None

        self.state = record.state
        self.backup = record.backup or self.backup
        self._last = record

        try:
            return _HANDLERS[record.state](self, document, record)
        except Superseded:
            self._document = None
        except RotationError:
            if self._over:
                raise

            # What does not fit may be what another process left behind a moment ago.
            found, now = self._look(anew=True)

            if now is not None and same(now, record):
                raise

        return None

    def _without_record(self, document: Document) -> None:
        if self.operation is not None:
            self._end_by_others(document)
        elif self.rules.begin:
            self._begin(document)
        else:
            self._over = True

    def _end_by_others(self, document: Document) -> None:
        # It ended, here or elsewhere; unless somebody has overwritten the document.
        pending = (self._last.pending if self._last is not None else None) or {}
        other = any(document.data.get(k) != v for k, v in pending.items())

        if other and (trace := way_back(self.means.kv, self.task, document)):
            self.state = "gone"
            raise RotationError(
                f"{self.task.name}: the operation {self.operation} is not in the"
                " document any more, and its value neither: another run gave it up, or"
                f" somebody has overwritten the document.{trace}",
                path=document.path,
            )

        self._final = document
        self.joined = True
        self.state = "done"
        self._over = True

    # --- the beginning ---------------------------------------------------------------

    def _begin(self, document: Document) -> None:
        task = self.task
        before = self._seen or document

        if document.version is None:
            raise RotationError(
                f"{task.name} is on a mount of KV version 1, which has no check-and-set"
                " to keep a journal with: move it to a mount of version 2.",
                path=task.location.path,
            )

        if task.field not in document.data:
            raise SecretFieldError(
                f"The document {document.path!r} has no field {task.field!r} to rotate:"
                " write what is in use there with 'flask vault set'.",
                path=document.path,
            )

        if document.data[task.field] != before.data.get(task.field):
            raise self._rotated_by_others(document)

        if self.means.backups is not None:
            self.means.backups.check()

        operation = uuid.uuid4().hex
        rotator = self.rotator
        job = self._job(document, Record(operation, task.kind, "INTENT"))

        try:
            self._call(rotator.check, job)
        except RotationError as error:
            if trace := way_back(self.means.kv, self.task, document):
                raise RotationError(f"{error}{trace}", path=document.path) from None

            raise

        elsewhere = rotator.creates_elsewhere and self._value is None
        nonce = new_nonce() if elsewhere else None
        pending = self._value

        if pending is None and not elsewhere:
            pending = fields_of(self.task, self._call(rotator.create, job))

        if pending is not None and all(
            document.data.get(k) == v for k, v in pending.items()
        ):
            raise AlreadyRotatedError(
                f"The new value of {task.name} is the old one: nothing was changed.",
                path=document.path,
            )

        state: State = "INTENT" if elsewhere else "PREPARED"
        record = Record(operation, task.kind, state, pending, attempt=nonce)

        def put(present: Document) -> Fields | None:
            if record_of(present.data, task.field) is not None:
                return None

            if present.data.get(task.field) != before.data.get(task.field):
                raise self._rotated_by_others(present)

            return with_record(present.data, task.field, record)

        self._made_by = nonce
        self._write(put, seen=document)
        _, now = self._look()

        if now is not None and now.operation == operation:
            self.operation = operation
            self._note(state)
            reach("intended" if elsewhere else "prepared")

    def _rotated_by_others(self, document: Document) -> AlreadyRotatedError:
        self.operation = last_operation(self.means.kv, self.task, document)
        self.state = "done"
        return AlreadyRotatedError(
            f"{self.task.name} was rotated by somebody else meanwhile (operation"
            f" {self.operation or 'unknown'}): nothing was changed by this run.",
            path=document.path,
        )

    # --- the states ------------------------------------------------------------------

    def _intended(self, document: Document, record: Record) -> float | None:
        job = self._job(document, record)
        value: object = None

        if record.attempt != self._made_by or self._made_by is None:
            # Who makes it now may be alive: a second value would be an orphan.
            left = self._left(document, "INTENT", self.rules.adopt_after)

            if left > 0 and self.joined:
                self._document = None
                return left

            self._claim(record)

            try:
                value = self._call(self.rotator.find, job)
            except NotImplementedError:
                raise RotationError(
                    f"{self.task.name}: a run was cut off while it made the new value,"
                    " and the rotator cannot find out whether there is one. Look where"
                    f" it is made for what carries the operation {record.operation},"
                    " delete it, and give up the operation with 'flask vault rotate"
                    f" --secret {self.task.label} --abort --yes'."
                ) from None

        if value is None:
            value = self._call(self.rotator.create, job)

        pending = fields_of(self.task, value)
        reach("created")

        def put(present: Document) -> Fields | None:
            now = self._still(present, record, ("INTENT",))
            return with_record(
                present.data,
                self.task.field,
                dataclasses.replace(
                    now, state="PREPARED", pending=pending, attempt=None
                ),
            )

        try:
            self._write(put)
        except Superseded:
            found, now = self._look(anew=True)

            # Whoever was faster may have made another one. Then ours is of no use.
            if now is None or now.pending != pending:
                self._call(
                    self.rotator.abort, dataclasses.replace(job, pending=pending)
                )

            raise

        self._note("PREPARED")
        reach("prepared")
        return None

    def _prepared(self, document: Document, record: Record) -> float | None:
        if self.means.backups is not None and self.backup is None:
            self.backup = back_up_once(
                self.means.backups,
                self.task.label,
                self.means.namespace,
                document,
                record,
            )
            self._record(record.state, "backed up", document)
            reach("backed up")

        left = self._left(document, "PREPARED", self.rules.window)

        if left > 0:
            self._document = None
            return left

        def put(present: Document) -> Fields | None:
            now = self._still(present, record, ("PREPARED",))
            return with_record(
                present.data,
                self.task.field,
                dataclasses.replace(now, state="APPLYING", backup=self.backup),
            )

        self._write(put)
        self._note("APPLYING")
        reach("applying")
        return None

    def _applying(self, document: Document, record: Record) -> float | None:
        job = self._job(document, record)
        deadline = time.monotonic() + self.rules.verify_for

        try:
            self._until(deadline, self.rotator.apply, job, record)
        except Rejected as rejection:
            self._reject(document, record, job, str(rejection))
            return None

        self._record(record.state, "applied", document)
        reach("applied")
        self._until(deadline, self.rotator.verify, job, record)
        self._record(record.state, "verified", document)
        reach("verified")

        def put(present: Document) -> Fields | None:
            now = self._still(present, record, ("APPLYING",))
            return promoted(present.data, self.task.field, now)

        self._previous_version = document.version
        self._final = self._write(put)
        self._note("PROMOTED")
        reach("promoted")
        return None

    def _promoted(self, document: Document, record: Record) -> float | None:
        self._final = document
        left = self._left(document, "PROMOTED", self.rules.window)

        if left > 0:
            self._document = None
            return left

        job = self._job(document, record)
        deadline = time.monotonic() + self.rules.verify_for
        self._until(deadline, self.rotator.revoke, job, record)
        self._record(record.state, "revoked", document)
        reach("revoked")

        def put(present: Document) -> Fields | None:
            self._still(present, record, ("PROMOTED",))
            return without_record(present.data, self.task.field)

        self._final = self._write(put)
        self.state = "done"
        self._over = True
        self._record("IDLE", "done", self._final)
        reach("done")
        return None

    def _reject(
        self, document: Document, record: Record, job: Job, reason: str
    ) -> None:
        """The target does not want this value. Another one, if that does no harm."""
        self._record(record.state, "rejected", document)

        if not self._gives_up(job, record):
            raise RotationError(
                f"{self.task.name}: the new value was rejected ({reason}), and it is"
                " not proven that the old one is in use. Nothing more was done: look at"
                " the target, then run the command again."
            )

        rejected = record.rejected + 1
        given = self._value is not None
        last = rejected >= _MOST_VALUES or given or self.rotator.creates_elsewhere

        if last:
            self._forget(record)
            self._over = True
            values = "value was" if rejected == 1 else f"{rejected} values were"
            raise RotationError(
                f"{self.task.name}: the new {values} rejected ({reason}), so the"
                " rotation was given up. The old value is in use, and nothing was"
                " changed: see what the target asks of a value, and set 'generator'"
                " and its options in 'rotate' to that."
            )

        operation = uuid.uuid4().hex
        pending = fields_of(
            self.task,
            self._call(
                self.rotator.create, dataclasses.replace(job, operation=operation)
            ),
        )
        after = Record(operation, record.kind, "PREPARED", pending, rejected=rejected)

        def put(present: Document) -> Fields | None:
            self._still(present, record, ("APPLYING",), self._nonce)
            return with_record(present.data, self.task.field, after)

        self._write(put)
        self.operation, self.backup = operation, None
        self._note("PREPARED")

    def _abort(self, force: bool) -> None:
        document, record = self._look()

        if record is None:
            return

        self.operation, self.state = record.operation, record.state
        job = self._job(document, record)
        harmless = record.state == "PREPARED" and not self.rotator.creates_elsewhere

        if record.state == "PROMOTED":
            raise RotationError(
                f"{self.task.name}: the new value is in use already. Finish with 'flask"
                f" vault rotate --secret {self.task.label} --resume'; to go back after"
                f" that, 'flask vault rotate --restore {record.backup or 'FILE'}'."
            )

        if not harmless and not self._gives_up(job, record):
            if record.state != "INTENT":
                raise RotationError(
                    f"{self.task.name}: it is not proven that the old value is the one"
                    " in use, so the rotation stays open. Finish it with 'flask vault"
                    f" rotate --secret {self.task.label} --resume'."
                )

            if not force:
                raise RotationError(
                    f"{self.task.name}: a value may have been made elsewhere. Look for"
                    f" what carries the operation {record.operation}, delete it, and"
                    f" run 'flask vault rotate --secret {self.task.label} --abort"
                    " --yes'."
                )

        self._forget(record)

    def _gives_up(self, job: Job, record: Record) -> bool:
        """Have the rotator take back what was done, while nobody goes on with it."""
        self._gives_it_up = True
        # Only a claim of its own says that nobody came between the proof and the end.
        self._nonce = None
        marked = self.rotator.creates_elsewhere

        if marked:
            self._claim(record, GIVING_UP)

        given_up = self._call(self.rotator.abort, job)

        if marked and not given_up:
            self._claim(record)

        return given_up

    def _forget(self, record: Record) -> None:
        def put(present: Document) -> Fields | None:
            self._still(present, record, (record.state,), self._nonce)
            return without_record(present.data, self.task.field)

        written = self._write(put)
        self.state = "aborted"
        self._record("IDLE", "aborted", written)


_HANDLERS: t.Final[
    cabc.Mapping[State, cabc.Callable[[Run, Document, Record], float | None]]
] = {
    "INTENT": Run._intended,
    "PREPARED": Run._prepared,
    "APPLYING": Run._applying,
    "PROMOTED": Run._promoted,
}


def fields_of(task: Task, value: object) -> Fields:
    """The fields that a rotator made.

    :raises RotationError: when there is no value in it.
    """
    if isinstance(value, str) and value.strip():
        return {task.field: value}

    if isinstance(value, cabc.Mapping) and value.get(task.field):
        return dict(value)

    raise RotationError(
        f"{task.name}: the rotator made no value: create() returns text, or a mapping"
        f" with {task.field!r} in it."
    )
