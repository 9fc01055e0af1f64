"""What ``VAULT_SECRETS`` declares: which documents there are, and what to rotate."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import functools
import typing as t

from .entries import duration
from .entries import Entry
from .entries import Reference
from .entries import Rotation
from .errors import RotationError
from .errors import VaultConfigError
from .rotation import generators
from .rotation.journal import Fields
from .rotation.registry import new_rotator
from .rotation.rotators import Rotator
from .rotation.runner import Target
from .rotation.tasks import Task
from .values import resolve
from .vault.documents import Location


@dataclasses.dataclass(frozen=True)
class StaticRole:
    """A user of a database whose password Vault's own engine makes and changes.

    :param location: of its credentials.
    """

    location: Location
    label: str
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be rotated."""

    #: Values that live in Vault only, one target for each document.
    targets: tuple[Target, ...] = ()
    #: Fields whose values are in use elsewhere, too.
    tasks: tuple[Task, ...] = ()
    roles: tuple[StaticRole, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.targets or self.tasks or self.roles)

    def __or__(self, other: Plan) -> Plan:
        """Both, each field once."""
        targets = {target.location: target for target in self.targets}

        for target in other.targets:
            if (known := targets.get(target.location)) is not None:
                makers = {**known.makers, **target.makers}
                target = dataclasses.replace(target, makers=makers)

            targets[target.location] = target

        tasks = {(task.location, task.field): task for task in self.tasks + other.tasks}
        roles = {role.location: role for role in self.roles + other.roles}
        return Plan(
            tuple(targets.values()), tuple(tasks.values()), tuple(roles.values())
        )


class Catalog:
    """The entries of an app, by document.

    :param mount: ``VAULT_MOUNT``.
    :param prefix: ``VAULT_PREFIX``, filled.
    :raises VaultConfigError: when an entry's ``rotate`` cannot work.
    """

    def __init__(self, mount: str, prefix: str, entries: cabc.Iterable[Entry]) -> None:
        self.mount = mount
        self.prefix = prefix
        self.entries = tuple(entries)

        for entry in self.entries:
            _check_rotation(entry)

        _check_agreement(self.rotatable())

    def location(self, reference: Reference, version: int | None = None) -> Location:
        """Where a reference leads, with ``VAULT_MOUNT`` and ``VAULT_PREFIX``."""
        if reference.absolute:
            return Location(reference.path, version)

        mount = self.mount
        parts = (mount, self.prefix, reference.path)
        return Location("/".join(filter(None, parts)), version, mount)

    def location_of(self, entry: Entry) -> Location:
        """Where the document of an entry is, at the version that it pins."""
        return self.location(entry.reference, entry.secret.version)

    def rotatable(self) -> dict[Location, dict[str, list[Entry]]]:
        """The entries with ``rotate``, by document and field."""
        found: dict[Location, dict[str, list[Entry]]] = {}

        for entry in self.entries:
            if entry.rotated_field is not None:
                fields = found.setdefault(self.location_of(entry), {})
                fields.setdefault(entry.rotated_field, []).append(entry)

        return found

    def declared(self, location: Location) -> dict[str, Rotation]:
        """How the fields of a document are made anew, by field."""
        fields = self.rotatable().get(location, {})
        return {f: t.cast(Rotation, found[0].rotation) for f, found in fields.items()}

    def plan(self, select: str | None = None) -> Plan:
        """What there is to rotate.

        :param select: a config key, an entry's ``name`` or a path (all its rotatable
            fields); ``None`` is everything.
        :raises VaultConfigError: when ``select`` names nothing that has ``rotate``.
        """
        targets: list[Target] = []
        tasks: list[Task] = []
        roles: list[StaticRole] = []

        for location, fields in self.rotatable().items():
            makers: dict[str, cabc.Callable[[], t.Any]] = {}
            label = ""

            for field, entries in fields.items():
                chosen = [e for e in entries if select is None or _named(e, select)]

                if not chosen:
                    continue

                rotation = t.cast(Rotation, chosen[0].rotation)
                label = str(dataclasses.replace(chosen[0].reference, field=None))

                if rotation.kind == "signing":
                    makers[field] = functools.partial(
                        generators.make, rotation.generator, rotation.options
                    )
                elif rotation.kind == "database-static":
                    keys = tuple(entry.key for entry in entries)
                    roles.append(StaticRole(location, label, keys))
                else:
                    tasks.append(self._task(location, label, field, entries))

            if makers:
                targets.append(Target(location, label, makers))

        plan = Plan(tuple(targets), tuple(tasks), tuple(roles))

        if select is not None and not plan:
            raise VaultConfigError(
                f"{select!r} names nothing that can be rotated: give a config key, a"
                " name or a path of an entry of VAULT_SECRETS that has 'rotate'."
                f" There are: {', '.join(self._rotatable_keys()) or 'none'}."
            )

        return plan

    def max_age(self, location: Location, field: str) -> float | None:
        """The seconds after which a field is due; ``None`` is never."""
        ages = [
            duration(entry.secret.max_age, "'max_age'")
            for entry in self.rotatable().get(location, {}).get(field, ())
            if entry.secret.max_age is not None
        ]
        return min(ages, default=None)

    def _task(
        self, location: Location, label: str, field: str, entries: list[Entry]
    ) -> Task:
        rotation = t.cast(Rotation, entries[0].rotation)
        # A URL is of more use to a rotator than the bare value.
        speaking = next((e for e in entries if e.secret.template), entries[0])

        def render(data: Fields) -> str:
            return str(resolve(speaking, data, location.path))

        def rotator() -> Rotator:
            return new_rotator(rotation.kind, _rotator_options(rotation))

        keys = tuple(entry.key for entry in entries)
        return Task(location, label, field, keys, rotation.kind, rotator, render)

    def _rotatable_keys(self) -> list[str]:
        return [entry.key for entry in self.entries if entry.rotation is not None]

    def owner_of(self, path: str, file: str) -> tuple[Location, str]:
        """The location of a backup's document, and its name for people.

        :param path: mount and path, as the backup says.
        :param file: the backup's name, for the message.
        :raises RotationError: when it is of another app.
        """
        for entry in self.entries:
            location = self.location_of(entry).newest()

            if location.path == path:
                label = dataclasses.replace(entry.reference, field=None)
                return location, str(label)

        home = f"{self.mount}/{self.prefix}/"

        # Without a prefix of its own an app shares the mount with others.
        if self.prefix and path.startswith(home):
            return Location(path, mount=self.mount), path[len(home) :]

        raise RotationError(
            f"The backup {file!r} is of {path!r}, which no entry of VAULT_SECRETS names"
            " and which is not below VAULT_PREFIX: it is not restored.",
            path=path,
        )


def _named(entry: Entry, select: str) -> bool:
    path = select.strip("/")
    return select in {entry.key, entry.secret.name} or path == entry.reference.path


def _check_rotation(entry: Entry) -> None:
    rotation = entry.rotation

    if rotation is None:
        return

    try:
        if rotation.kind == "signing":
            generators.check(rotation.generator, rotation.options)
        elif rotation.kind in ("database", "callable"):
            new_rotator(rotation.kind, _rotator_options(rotation))
    except VaultConfigError as error:
        raise VaultConfigError(f"VAULT_SECRETS[{entry.key!r}]: {error}") from None


def _rotator_options(rotation: Rotation) -> dict[str, object]:
    options = dict(rotation.options)

    # The others make their values in ways of their own.
    if rotation.kind == "database":
        options["generator"] = rotation.generator

    return options


def _check_agreement(
    rotatable: cabc.Mapping[Location, cabc.Mapping[str, list[Entry]]],
) -> None:
    for fields in rotatable.values():
        for field, entries in fields.items():
            for other in entries[1:]:
                if other.rotation != entries[0].rotation:
                    raise VaultConfigError(
                        f"VAULT_SECRETS[{entries[0].key!r}] and"
                        f" VAULT_SECRETS[{other.key!r}] rotate the same field {field!r}"
                        " in different ways: give them the same 'rotate'."
                    )
