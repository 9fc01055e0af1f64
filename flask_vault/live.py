"""What an app has of Vault at this moment, and what a poll may change of it.

A document is taken whole or not at all, never an older one, and never one that lacks
what is there now. What cannot be taken changes nothing but the health.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import typing as t

from .config_writer import ConfigWriter
from .config_writer import Follower
from .entries import Entry
from .errors import SecretValueError
from .errors import VaultError
from .errors import without_frames
from .history import Need
from .keyring import fixed
from .keyring import KeyRing
from .resolve import Check
from .resolve import from_document
from .resolve import Outcome
from .rings import RingMaker
from .store import Held
from .templates import Template
from .values import RESERVED
from .vault.documents import Document
from .vault.documents import Location


@dataclasses.dataclass(frozen=True)
class Change:
    """An entry has another value in Vault."""

    key: str
    path: str
    field: str | None
    version: int | None
    previous_version: int | None


@dataclasses.dataclass(frozen=True)
class Advance:
    """Another key of a ring signs, or one is accepted no more.

    :param version: of the key that signs.
    :param accepted: the versions that are accepted, newest first.
    """

    key: str
    version: int
    accepted: tuple[int, ...]


@dataclasses.dataclass
class Learned:
    """What a poll, or the passing of time, has brought.

    :param written: key and version of each config key that has another value.
    :param rejected: why a document was not taken, by its place.
    """

    changes: list[Change] = dataclasses.field(default_factory=list)
    advances: list[Advance] = dataclasses.field(default_factory=list)
    written: list[tuple[str, int | None]] = dataclasses.field(default_factory=list)
    rejected: dict[Location, VaultError] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changes or self.advances or self.written)


class LiveConfig:
    """The documents, values and rings of an app. Not locked: one writes at a time.

    :param places: where the document of each entry is, by config key.
    :param window: ``VAULT_PROPAGATION_WINDOW`` in seconds.
    """

    def __init__(
        self,
        config: cabc.MutableMapping[str, t.Any],
        entries: cabc.Sequence[Entry],
        places: cabc.Mapping[str, Location],
        window: float,
    ) -> None:
        self._config = config
        self._checks: dict[str, list[Check]] = {}
        self._by_place: dict[Location, list[Entry]] = {}
        self._writer = ConfigWriter(config, entries)
        self.maker = RingMaker(places, entries, window, config, self._checks)
        #: What the values were made from. Replaced whole, like the two below.
        self.applied: dict[Location, Held] = {}
        self.rings: dict[str, KeyRing] = {}
        #: What a document was before it changed.
        self.before: dict[Location, Document] = {}
        #: By config key; without the values, which are in the config.
        self.outcomes: dict[str, Outcome] = {}

        for entry in entries:
            self._by_place.setdefault(places[entry.key], []).append(entry)

    @property
    def places(self) -> tuple[Location, ...]:
        """Each distinct path once."""
        return tuple(self._by_place)

    def needs(self, location: Location) -> tuple[Need, ...]:
        return self.maker.needs(location)

    def next_change(self) -> datetime.datetime | None:
        """When time alone changes a ring, by the server's clock."""
        times = [r.next_change for r in self.rings.values() if r.next_change]
        return min(times, default=None)

    # --- start -----------------------------------------------------------------------

    def start(
        self,
        outcomes: cabc.Iterable[Outcome],
        found: cabc.Mapping[Location, Held],
        now: datetime.datetime | None,
    ) -> None:
        """Write the values of a good start.

        :param now: by the server's clock; ``None`` without a server.
        """
        values: dict[str, t.Any] = {}
        rings: dict[str, KeyRing] = {}

        for place, held in found.items():
            if held.history is not None and now is not None:
                rings.update(self.maker.make(place, held.history, now))

        for outcome in outcomes:
            key = outcome.entry.key

            if outcome.source == "unset":
                self._config.setdefault(key, None)
            elif outcome.entry.secret.keyring and outcome.value is not None:
                rings.setdefault(key, fixed(outcome.value))
            else:
                values[key] = outcome.value

            fallbacks = outcome.entry.fallbacks_key

            if fallbacks is not None and self._config.get(fallbacks) is None:
                # Inserted once, and only replaced later, for those who iterate.
                self._config[fallbacks] = []

        self.applied = dict(found)
        self.rings = rings
        self._writer.write(values, rings)

    # --- later -----------------------------------------------------------------------

    def learn(
        self, found: cabc.Mapping[Location, Held], now: datetime.datetime
    ) -> Learned:
        """Take over what polls have found, as far as it is good."""
        learned = Learned()
        applied = dict(self.applied)
        values: dict[str, t.Any] = {}
        rings: dict[str, KeyRing] = {}
        outcomes: dict[str, Outcome] = {}

        for place, new in found.items():
            base = applied.get(place)
            gone = None if new.history is None else new.history.gone(now)

            if gone is not None:
                learned.rejected[place] = gone

            if base is None or new.document is not base.document:
                try:
                    better = self._outcomes(place, new)
                except VaultError as error:
                    learned.rejected[place] = without_frames(error)

                    # What a ring does not accept any more is known from the metadata.
                    if base is None or new.history is None:
                        continue

                    new = dataclasses.replace(new, document=base.document)
                else:
                    if base is not None:
                        self.before[place] = base.document

                    for outcome in better:
                        outcomes[outcome.entry.key] = outcome
                        self._compare(learned, outcome, new.document, base, values)

            if new.history is not None:
                if (
                    base is None
                    or new.document is not base.document
                    or new.history is not base.history
                ):
                    rings.update(self.maker.make(place, new.history, now))

            applied[place] = new

        # What goes wrong in there is tried again when it is not taken for done.
        self._put(learned, values, rings)
        self.applied = applied
        self.outcomes = {
            **self.outcomes,
            **{key: outcome.without_value() for key, outcome in outcomes.items()},
        }
        return learned

    def advance(self, now: datetime.datetime) -> Learned:
        """Move the rings whose time has come."""
        learned = Learned()
        rings: dict[str, KeyRing] = {}
        due = [
            key
            for key, ring in self.rings.items()
            if ring.next_change is not None and ring.next_change <= now
        ]

        if due:
            for place in self.maker.entries:
                held = self.applied.get(place)

                if held is not None and held.history is not None:
                    rings.update(self.maker.make(place, held.history, now))

        for key in set(due) - rings.keys():
            # Nothing is left of it. It serves on, and there is nothing to wait for.
            rings[key] = dataclasses.replace(self.rings[key], next_change=None)

        self._put(learned, {}, rings)
        return learned

    def check_values(
        self, key: str, check: Check, now: datetime.datetime | None
    ) -> None:
        """Have the values of a config key checked, those that are there first.

        :raises SecretValueError: when the one that is in use does not pass. Older ones
            that do not are dropped from the ring.
        """
        self._checks.setdefault(key, []).append(check)
        held = next(
            (
                (place, self.applied[place])
                for place, entries in self._by_place.items()
                if place in self.applied and any(e.key == key for e in entries)
            ),
            None,
        )

        if held is None:
            return

        place, present = held
        entry = next(e for e in self._by_place[place] if e.key == key)
        from_document(entry, present.document, self._checks[key])

        if present.history is not None and now is not None and key in self.rings:
            rings = self.maker.make(place, present.history, now)
            self._put(Learned(), {}, {k: r for k, r in rings.items() if k == key})

    def follow(self, key: str, follower: Follower) -> None:
        """Have config values derived from a ring, now and whenever it changes."""
        self._writer.follow(key, follower)
        ring = self.rings.get(key)

        if ring is not None:
            self._writer.write({}, {key: ring})

    # --- parts -----------------------------------------------------------------------

    def _outcomes(self, place: Location, held: Held) -> list[Outcome]:
        """The values of a document, all of them or an error.

        Of an entry that had no value from Vault before, an error changes nothing.
        """
        better: list[Outcome] = []

        for entry in self._by_place[place]:
            before = self.outcomes.get(entry.key)
            had = before is not None and before.source in {"vault", "cache"}

            try:
                outcome = from_document(
                    entry, held.document, self._checks.get(entry.key, ())
                )

                if had and _is_blank(outcome.value):
                    raise _empty(place, None)

                if had and (name := self._emptied(entry, place, held.document)):
                    raise _empty(place, name)
            except VaultError as error:
                if had:
                    raise type(error)(
                        f"{entry.key} keeps its value, since the one in Vault does not"
                        f" serve: {error}",
                        path=error.path,
                    ) from None
            else:
                better.append(outcome)

        return better

    def _emptied(self, entry: Entry, place: Location, now: Document) -> str | None:
        """A field of a template that has lost its value."""
        held = self.applied.get(place)

        if held is None or entry.secret.template is None:
            return None

        before = held.document.data
        return next(
            (
                name
                for name in Template.parse(entry.secret.template).fields
                if _is_blank(now.data.get(name)) and not _is_blank(before.get(name))
            ),
            None,
        )

    def _compare(
        self,
        learned: Learned,
        outcome: Outcome,
        document: Document,
        base: Held | None,
        values: dict[str, t.Any],
    ) -> None:
        entry = outcome.entry
        before = self.outcomes.get(entry.key)

        if entry.key in self.rings and base is not None:
            same = self._had(entry, base) == outcome.value
        else:
            same = self._config.get(entry.key) == outcome.value

        if same:
            return

        if not entry.secret.keyring:
            values[entry.key] = outcome.value
            learned.written.append((entry.key, outcome.version))

        learned.changes.append(
            Change(
                entry.key,
                document.path,
                _changed_field(entry, document, base),
                outcome.version,
                None if before is None else before.version,
            )
        )

    def _had(self, entry: Entry, base: Held) -> t.Any:
        try:
            return from_document(entry, base.document).value
        except VaultError:
            return None

    def _put(
        self,
        learned: Learned,
        values: cabc.Mapping[str, t.Any],
        rings: cabc.Mapping[str, KeyRing],
    ) -> None:
        changed = {
            k: r for k, r in rings.items() if not r.same_values(self.rings.get(k))
        }

        for key, ring in changed.items():
            before = self.rings.get(key)

            if before is None or before.signing.id != ring.signing.id:
                learned.written.append((key, ring.signing.version))

            if before is not None and (
                before.signing.id != ring.signing.id
                or {k.id for k in before.accepted} - {k.id for k in ring.accepted}
            ):
                learned.advances.append(
                    Advance(
                        key,
                        ring.signing.version,
                        tuple(k.version for k in ring.accepted),
                    )
                )

        self._writer.write(values, changed)
        self.rings = {**self.rings, **rings}


def _changed_field(entry: Entry, document: Document, base: Held | None) -> str | None:
    field = entry.reference.field or entry.rotated_field

    if field is not None or base is None:
        return field

    before, now = base.document.data, document.data
    names = (n for n in sorted({*before, *now}) if before.get(n) != now.get(n))
    return next((name for name in names if name not in RESERVED), None)


def _empty(place: Location, field: str | None) -> SecretValueError:
    where = place.path if field is None else f"{place.path}#{field}"
    return SecretValueError(f"The value of {where!r} is empty: write one.", path=where)


def _is_blank(value: t.Any) -> bool:
    return isinstance(value, str) and not value.strip()
