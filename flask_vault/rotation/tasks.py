"""What is rotated by a rotator, by which rules, and how it ended."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

from ..errors import VaultError
from ..vault.documents import Document
from ..vault.documents import Location
from ..vault.kv import KV
from .audit import AuditLog
from .backup import BackupStore
from .journal import Fields
from .rotators import Rotator
from .runner import Rotated


@dataclasses.dataclass(frozen=True)
class Task:
    """A field of a document that is rotated by a rotator.

    :param label: the reference's path, for people and for the backup's name.
    :param keys: the config keys that depend on it.
    :param render: the config value that an entry makes of the document.
    :param rotator: makes the rotator.
    """

    location: Location
    label: str
    field: str
    keys: tuple[str, ...]
    kind: str
    rotator: cabc.Callable[[], Rotator] = dataclasses.field(repr=False, compare=False)
    render: cabc.Callable[[Fields], str] = dataclasses.field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Path and field, as in a reference."""
        return f"{self.label}#{self.field}"


@dataclasses.dataclass(frozen=True)
class Progress:
    """A step of a rotation that was done, or a wait."""

    task: Task
    operation: str | None
    step: str
    #: Seconds that are left to wait; ``None`` for a step.
    remaining: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How a rotation stands when the run ends."""

    task: Task
    operation: str | None
    #: ``done``, ``aborted``, ``nothing open``, or the state in which it was left.
    state: str
    error: VaultError | None = None
    #: Whether another process had begun it.
    joined: bool = False
    document: Document | None = None
    previous_version: int | None = None
    backup: str | None = None

    def rotated(self) -> Rotated | None:
        """The same for who is told of rotations; ``None`` when the value is the old."""
        if self.document is None or self.operation is None:
            return None

        return Rotated(
            self.operation,
            self.task.location,
            self.task.label,
            (self.task.field,),
            self.document,
            self.previous_version,
            self.backup,
        )


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a run goes about it; all times are seconds.

    :param window: how long a new value is known to all workers before it is used, and
        an old one is still taken after that (``VAULT_PROPAGATION_WINDOW``).
    :param wait: ``False`` leaves a rotation where it would wait.
    :param begin: ``False`` only goes on with what is open.
    :param compromised: wait for nobody.
    :param outlast: for which a server that does not answer is outlasted.
    :param verify_for: for which a target may take to accept a value.
    :param adopt_after: for which a process that makes a value elsewhere is left alone.
    :param fenced: ``False`` is for the test that shows what the fence is good for.
    """

    window: float = 120.0
    wait: bool = True
    begin: bool = True
    compromised: bool = False
    outlast: float = 60.0
    verify_for: float = 60.0
    adopt_after: float = 10.0
    fenced: bool = True


@dataclasses.dataclass(frozen=True)
class Means:
    """With what a run does its work.

    :param backups: where both values go before anything changes; ``None`` makes none.
    :param namespace: noted in the backup.
    :param lookup: reads the value of a config key or reference.
    :param report: is told of each step and wait.
    """

    kv: KV
    backups: BackupStore | None
    namespace: str | None
    rules: Rules
    lookup: cabc.Callable[[str], str]
    audit: AuditLog
    report: cabc.Callable[[Progress], None] = lambda progress: None
