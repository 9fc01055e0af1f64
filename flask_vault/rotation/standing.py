"""Where one rotation stands, as a process knows it: reads its record, writes it, tells
of it, and asks the rotator."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import random
import time
import typing as t
import uuid

from ..errors import RotationError
from ..errors import SecretNotFoundError
from ..errors import UnfinishedRotationError
from ..errors import VaultError
from ..vault.documents import Document
from ..vault.updates import Change
from ..vault.updates import update
from .generators import describe
from .journal import Fields
from .journal import Record
from .journal import record_of
from .journal import State
from .journal import visible
from .journal import with_record
from .rotators import Job
from .rotators import NotYet
from .rotators import Rejected
from .rotators import Rotator
from .tasks import Means
from .tasks import Progress
from .tasks import Result
from .tasks import Task

T = t.TypeVar("T")


#: How the nonce begins of who gives an operation up.
GIVING_UP: t.Final = "abort-"


class Superseded(Exception):
    """Another process has taken the operation further than this one knew."""


class Standing:
    """One task, and what is known of its operation."""

    def __init__(
        self,
        means: Means,
        task: Task,
        seen: Document | None,
        value: Fields | None,
    ) -> None:
        self.means = means
        self.rules = means.rules
        self.task = task
        self.operation: str | None = None
        self.joined = False
        self.state: str = "nothing open"
        self.error: VaultError | None = None
        self.backup: str | None = None
        self._seen = seen
        self._value = value
        self._rotator: Rotator | None = None
        self._document: Document | None = None
        self._final: Document | None = None
        self._previous_version: int | None = None
        #: As it was seen last.
        self._last: Record | None = None
        #: By Vault's clock, what this process wrote itself.
        self._since: dict[State, datetime.datetime] = {}
        #: Of the value that this process makes elsewhere.
        self._made_by: str | None = None
        #: Of the last claim.
        self._nonce: str | None = None
        #: Whether this process is about to end the operation without a new value.
        self._gives_it_up = False
        self._over = False

    def result(self) -> Result:
        """How it stands."""
        return Result(
            self.task,
            self.operation,
            self.state,
            self.error,
            self.joined,
            self._final,
            self._previous_version,
            self.backup,
        )

    @property
    def rotator(self) -> Rotator:
        if self._rotator is None:
            self._rotator = self.task.rotator()

        return self._rotator

    def _look(self, anew: bool = False) -> tuple[Document, Record | None]:
        if self._document is None or anew:
            try:
                self._document = self.means.kv.read(self.task.location)
            except SecretNotFoundError:
                if self.operation is None:
                    raise

                self._document = self.means.kv.newest(self.task.location)

        return self._document, record_of(self._document.data, self.task.field)

    def _write(self, change: Change, seen: Document | None = None) -> Document:
        self._document = None
        written = update(
            self.means.kv,
            self.task.location,
            change,
            seen=seen,
            outlast=self.rules.outlast,
        )
        self._document = written
        return written

    def _still(
        self,
        present: Document,
        record: Record,
        states: tuple[State, ...],
        nonce: str | None = None,
    ) -> Record:
        """The record as it is now, if the operation has not gone on without us."""
        now = record_of(present.data, self.task.field)

        if (
            now is None
            or now.operation != record.operation
            or now.state not in states
            or (nonce is not None and now.attempt != nonce)
        ):
            raise Superseded

        # Its value may be gone from where it was made.
        if (now.attempt or "").startswith(GIVING_UP) and not self._gives_it_up:
            raise RotationError(
                f"{self.task.name}: a run has begun to give up this rotation. Finish"
                f" that with 'flask vault rotate --secret {self.task.label} --abort'."
            )

        return now

    def _claim(self, record: Record, prefix: str = "") -> None:
        """Make sure, by a write, that the operation is where we think it is.

        A read would not do: it may be a standby's, and old.

        :param prefix: ``GIVING_UP`` keeps others from going on.
        """
        nonce = f"{prefix}{new_nonce()}"

        def put(present: Document) -> Fields | None:
            now = self._still(present, record, (record.state,))

            # Our own write, whose answer was lost.
            if now.attempt == nonce:
                return None

            return with_record(
                present.data,
                self.task.field,
                dataclasses.replace(now, attempt=nonce),
            )

        if self.rules.fenced:
            self._write(put)
            self._nonce = nonce

    def _left(self, document: Document, state: State, seconds: float) -> float:
        """How much of a wait is left, by Vault's clock.

        What another process wrote is as old as the document's newest version, at the
        least.
        """
        if seconds == 0 or (self.rules.compromised and state != "INTENT"):
            return 0.0

        now = self.means.kv.now()
        since = self._since.get(state, document.created or now)
        return seconds - (now - since).total_seconds()

    def _job(self, document: Document, record: Record) -> Job:
        return Job(
            operation=record.operation,
            field=self.task.field,
            label=self.task.label,
            document=visible(document.data),
            pending=record.pending,
            previous=record.previous,
            compromised=self.rules.compromised,
            claim=lambda: self._claim(record),
            render=self.task.render,
            lookup=self.means.lookup,
        )

    def _call(self, method: cabc.Callable[[Job], T], job: Job) -> T:
        """Call a method of the rotator's, which may be the user's."""
        problem = ""

        try:
            return method(job)
        except (VaultError, NotYet, Rejected, Superseded, NotImplementedError):
            raise
        except Exception as error:
            problem = describe(error)

        # Out here: its text may hold a value, and must not live on as a context.
        raise self._unfinished(f"{method.__name__}() of the rotator raised {problem}")

    def _until(
        self,
        deadline: float,
        work: cabc.Callable[[Job], object],
        job: Job,
        record: Record,
    ) -> None:
        """Call a method of the rotator until it succeeds."""
        pause = 0.05

        while True:
            try:
                self._call(work, job)
            except NotYet as reason:
                if time.monotonic() > deadline:
                    raise

                self._document = None
                _, now = self._look()

                if now is None or not same(now, record):
                    raise Superseded from None

                self.report(f"{work.__name__}: {reason}")
            else:
                return

            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
            pause = min(2.0, pause * 2)

    def _unfinished(self, reason: str) -> UnfinishedRotationError:
        return UnfinishedRotationError(
            f"{self.task.name}: {reason}. What is needed to go on is kept, and running"
            " the command again is safe.",
            path=self.task.location.path,
        )

    def _fail(self, error: VaultError) -> None:
        self.error = error
        self._over = True
        self.means.audit.record(
            operation=self.operation,
            keys=self.task.keys,
            path=self.task.location.path,
            field=self.task.field,
            state=self.state,
            outcome=type(error).__name__,
        )

    def report(self, step: str, remaining: float | None = None) -> None:
        self.means.report(Progress(self.task, self.operation, step, remaining))

    def _note(self, state: State) -> None:
        """A state that this process has written."""
        self.state = state
        self._since[state] = self.means.kv.now()
        self._record(state, state.lower(), self._document)

    def _record(self, state: str, step: str, document: Document | None) -> None:
        self.report(step)
        version = None if document is None else document.version
        wrote = document is not None and document is self._document
        self.means.audit.record(
            operation=self.operation,
            keys=self.task.keys,
            path=self.task.location.path,
            field=self.task.field,
            state=state,
            outcome=step,
            from_version=self._previous_version,
            to_version=version,
            request_id=self.means.kv.request_id if wrote else None,
        )


def new_nonce() -> str:
    """A name for one try."""
    return uuid.uuid4().hex[:16]


def same(one: Record, other: Record) -> bool:
    """Whether an operation has not gone on."""
    return (one.operation, one.state) == (other.operation, other.state)
