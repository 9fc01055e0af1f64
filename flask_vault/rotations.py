"""Rotates and restores what the entries of an app declare."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import typing as t
import uuid

from .backups import open_backups
from .catalog import Catalog
from .catalog import Plan
from .catalog import StaticRole
from .entries import Reference
from .errors import AlreadyRotatedError
from .errors import RotationError
from .errors import SecretNotFoundError
from .errors import UnfinishedRotationError
from .errors import VaultPermissionError
from .observing import Observers
from .observing import StepTimer
from .rotation import generators
from .rotation.audit import AuditLog
from .rotation.envelope import Backup
from .rotation.operations import Operations
from .rotation.runner import Rotated
from .rotation.runner import Runner
from .rotation.runner import Target
from .rotation.tasks import Means
from .rotation.tasks import Progress
from .rotation.tasks import Rules
from .rotation.tasks import Task
from .settings import Settings
from .values import pick
from .values import resolve
from .vault.documents import Document
from .vault.documents import Location
from .vault.documents import Stamp
from .vault.kv import KV
from .vault.versions import Versions


class Rotations:
    """The rotations of one app.

    :param done: told of each rotation that was done.
    """

    def __init__(
        self,
        kv: KV,
        versions: Versions,
        catalog: Catalog,
        settings: Settings,
        done: cabc.Callable[[Rotated], None],
        observers: Observers,
    ) -> None:
        self._kv = kv
        self._versions = versions
        self._catalog = catalog
        self._settings = settings
        self._done = done
        self._observers = observers
        self.audit = AuditLog(settings.audit_log, actor=kv.describe_token, clock=kv.now)

    @property
    def rules(self) -> Rules:
        """How journalled rotations go about it, by the settings."""
        window = self._settings.propagation_window
        return Rules(window=window, adopt_after=min(Rules.adopt_after, window))

    def operations(
        self,
        rules: Rules,
        *,
        backup: bool = True,
        report: cabc.Callable[[Progress], None] = lambda progress: None,
    ) -> Operations:
        """What runs journalled rotations.

        :param backup: ``False`` makes no backups.
        :param report: is told of each step.
        :raises BackupError: when there is nowhere to put a backup.
        """
        self.audit.check()
        timer = StepTimer(self._observers)

        def tell(progress: Progress) -> None:
            timer.report(
                progress.task,
                progress.step,
                kind=progress.task.kind,
                operation=progress.operation,
                waits=progress.remaining is not None,
            )
            report(progress)

        means = Means(
            self._kv,
            open_backups(self._settings, self._kv.transport) if backup else None,
            self._settings.namespace,
            rules,
            self._lookup,
            self.audit,
            tell,
        )
        return Operations(means)

    def rotate_field(
        self, reference: Reference, field: str, value: str | None, backup: bool
    ) -> Rotated:
        """Rotate one field, to a given value or to one that is made."""
        location = self._catalog.location(reference)
        label = str(reference)

        for role in self._catalog.plan().roles:
            if (role.location, "password") == (location, field):
                if value is not None:
                    raise RotationError(
                        f"{role.label}: Vault's database engine makes the password"
                        " itself, and takes none."
                    )

                return self.rotate_role(role)

        if (task := self._task_of(location, field)) is not None:
            values = {} if value is None else {task: {field: value}}
            operations = self.operations(self.rules, backup=backup)
            return self.finish(operations, task, values)

        declared = self._catalog.declared(location).get(field)

        def make() -> t.Any:
            if value is not None:
                return value

            if declared is None:
                return generators.make("token", {})

            return generators.make(declared.generator, declared.options)

        label = label.strip("/")
        return self.rotate(Target(location, label, {field: make}), backup=backup)

    def finish(
        self,
        operations: Operations,
        task: Task,
        values: cabc.Mapping[Task, cabc.Mapping[str, t.Any]],
    ) -> Rotated:
        """Run one journalled rotation to its end."""
        (result,) = operations.run([task], values=values)
        rotated = result.rotated()

        if rotated is not None:
            self.tell(rotated)

        if result.error is not None:
            raise result.error

        if rotated is None:
            raise RotationError(f"{task.name} was not rotated.")

        return rotated

    def tell(self, rotated: Rotated) -> None:
        """Have the listeners called."""
        self._done(rotated)

    def rotate(
        self,
        target: Target,
        *,
        backup: bool = True,
        seen: Document | None = None,
        compromised: bool = False,
    ) -> Rotated:
        """Rotate all fields of a target, from :meth:`Catalog.plan`, at once.

        :param seen: the document as it was when the rotation was asked for. A field
            that was rotated since then is not rotated again.
        :param compromised: destroy the older versions, so that nobody accepts their
            values any more.
        """
        self.audit.check()
        backups = open_backups(self._settings, self._kv.transport) if backup else None
        runner = Runner(self._kv, backups, self._settings.namespace)

        try:
            with self._observers.span("rotate", fields=len(target.makers)):
                rotated = runner.rotate(target, seen)
        except Exception as error:
            self._note(target.label, target.location, target.makers, error)
            raise

        self._finished(rotated)

        if compromised:
            self._destroy_older(rotated)

        return rotated

    def rotate_role(self, role: StaticRole) -> Rotated:
        """Have Vault's database engine change a password, and read the new one.

        The engine changes the database and keeps its own journal. There is no backup:
        nobody but the engine can put a password to use.
        """
        self.audit.check()
        operation = uuid.uuid4().hex
        before = self._kv.read(role.location)

        try:
            self._kv.rotate_role(role.location)
            document = self._kv.read(role.location)
        except Exception as error:
            self._note(role.label, role.location, ["password"], error)
            raise

        if document.data == before.data:
            raise UnfinishedRotationError(
                f"{role.label}: Vault's database engine took the order, and the"
                " password is the old one still. Running it again is safe.",
                path=role.location.path,
            )

        rotated = Rotated(
            operation, role.location, role.label, ("password",), document, None, None
        )
        self._finished(rotated)
        return rotated

    def restore(self, file: str) -> Rotated:
        """Bring back the values that a rotation replaced, from its backup."""
        backups = open_backups(self._settings, self._kv.transport)
        backup = backups.read(file)
        location, label = self._catalog.owner_of(backup.header.path, file)

        for field in backup.header.fields:
            if (task := self._task_of(location, field)) is not None:
                return self._restore_elsewhere(backup, task)

        runner = Runner(self._kv, backups, self._settings.namespace)
        rotated = runner.restore(backup, location, label)
        self._finished(rotated)
        return rotated

    # --- what is due -----------------------------------------------------------------

    def due(self, plan: Plan) -> Plan:
        """What of a plan is older than its entries' ``max_age``, or open."""

        def is_due(location: Location, field: str) -> bool:
            age = self._catalog.max_age(location, field)
            return age is not None and self.is_older(location, field, age, unknown=True)

        return self._filtered(plan, is_due)

    def of_age(self, plan: Plan, seconds: float) -> Plan:
        """What of a plan was not changed for so many seconds, or is open."""
        return self._filtered(
            plan,
            lambda location, field: self.is_older(
                location, field, seconds, unknown=False
            ),
        )

    def is_open(self, task: Task) -> bool:
        """Whether a rotation of this field was begun and is not at its end."""
        from .rotation.journal import record_of

        data = self._kv.newest(task.location).data
        return record_of(data, task.field) is not None

    def is_older(
        self, location: Location, field: str, seconds: float, *, unknown: bool
    ) -> bool:
        """Whether a field has had its value for so many seconds, by Vault's clock.

        When the newest version is younger, older ones are looked at, which needs the
        capability ``read`` on ``metadata/``.

        :param unknown: the answer when the versions that are left do not tell.
        """
        # The server's clock as we know it is up to a second late.
        if seconds <= 0:
            return True

        try:
            document = self._kv.read(location.newest())
        except SecretNotFoundError:
            return True

        limit = self._kv.now() - datetime.timedelta(seconds=seconds)

        if document.created is None or field not in document.data:
            return unknown

        if document.created <= limit:
            return True

        # A static role, which has one password only.
        if document.version is None:
            return False

        try:
            stamps = self._versions.of(location.newest()).stamps
        except VaultPermissionError:
            return False

        there = [stamp for stamp in stamps if not stamp.is_gone(self._kv.now())]
        old = [stamp.number for stamp in there if stamp.created <= limit]

        if not old:
            return unknown and self._may_be_older(document, field, there, location)

        at_that_time = self._kv.read(dataclasses.replace(location, version=max(old)))
        return bool(at_that_time.data.get(field) == document.data[field])

    def _may_be_older(
        self,
        document: Document,
        field: str,
        there: cabc.Sequence[Stamp],
        location: Location,
    ) -> bool:
        """Whether a value may be from before the oldest version that is left."""
        first = min(stamp.number for stamp in there)

        # Version 1 still there: there never was an older one.
        if first == 1:
            return False

        oldest = self._kv.read(dataclasses.replace(location, version=first))
        return bool(oldest.data.get(field) == document.data[field])

    def _filtered(
        self, plan: Plan, wanted: cabc.Callable[[Location, str], bool]
    ) -> Plan:
        targets = []

        for target in plan.targets:
            makers = {
                field: make
                for field, make in target.makers.items()
                if wanted(target.location, field)
            }

            if makers:
                targets.append(dataclasses.replace(target, makers=makers))

        return Plan(
            tuple(targets),
            tuple(
                task
                for task in plan.tasks
                if wanted(task.location, task.field) or self.is_open(task)
            ),
            tuple(r for r in plan.roles if wanted(r.location, "password")),
        )

    # --- parts -----------------------------------------------------------------------

    def _task_of(self, location: Location, field: str) -> Task | None:
        for task in self._catalog.plan().tasks:
            if (task.location, task.field) == (location, field):
                return task

        return None

    def _lookup(self, name: str) -> str:
        """The value of a config key, an entry's name, or a reference."""
        for entry in self._catalog.entries:
            if name in {entry.key, entry.secret.name}:
                location = self._catalog.location_of(entry)
                document = self._kv.read(location)
                return str(resolve(entry, document.data, location.path))

        reference = Reference.parse(name)
        document = self._kv.read(self._catalog.location(reference))
        return str(pick(document.data, reference.field or "", document.path))

    def _restore_elsewhere(self, backup: Backup, task: Task) -> Rotated:
        """A rotation whose new value comes from the file."""
        header = backup.header

        if header.namespace != self._settings.namespace:
            raise RotationError(
                f"The backup {backup.name!r} is of the namespace {header.namespace!r},"
                f" not of {self._settings.namespace!r}: it is not restored.",
                path=header.path,
            )

        old = {name: backup.before[name] for name in header.fields}
        present = self._kv.read(task.location).data

        if all(present.get(name) == value for name, value in old.items()):
            raise AlreadyRotatedError(
                f"The document {header.path!r} holds the values of the backup"
                f" {backup.name!r} already: nothing was changed.",
                path=header.path,
            )

        return self.finish(self.operations(self.rules), task, {task: old})

    def _finished(self, rotated: Rotated) -> None:
        self.audit.record(
            operation=rotated.operation,
            keys=self._keys_of(rotated.location, rotated.fields),
            path=rotated.location.path,
            field=", ".join(rotated.fields),
            state="IDLE",
            outcome="done",
            from_version=rotated.previous_version,
            to_version=rotated.version,
            request_id=self._kv.request_id,
        )
        self._done(rotated)

    def _note(
        self,
        label: str,
        location: Location,
        fields: cabc.Iterable[str],
        error: Exception,
    ) -> None:
        names = tuple(fields)
        self.audit.record(
            operation=None,
            keys=self._keys_of(location, names),
            path=location.path,
            field=", ".join(names),
            state="IDLE",
            outcome=type(error).__name__,
        )

    def _keys_of(self, location: Location, fields: cabc.Collection[str]) -> list[str]:
        known = self._catalog.rotatable().get(location, {})
        return [entry.key for name in fields for entry in known.get(name, ())]

    def _destroy_older(self, rotated: Rotated) -> None:
        """Which of them hold the value is not known without reading them all, and a
        run that was cut off here has to end in the same way."""
        if rotated.version is None:
            return

        location = rotated.location.newest()
        older = [
            stamp.number
            for stamp in self._versions.of(location).stamps
            if stamp.number < rotated.version and not stamp.destroyed
        ]

        if older:
            self._versions.destroy(location, older)
