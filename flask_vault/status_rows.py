"""What the status page says of one secret, in words.

The same rule as for the health's details: no value, no address, no mount and no text of
an exception (CWE-209). All of it is read from memory.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import re
import typing as t

from . import durations
from .entries import Entry
from .entries import Reference
from .entries import Rotation
from .errors import VaultError
from .keyring import Key
from .keyring import KeyRing
from .keyring import State
from .rotation.journal import RESERVED_FIELD
from .state import AppState
from .vault.documents import Document
from .vault.documents import Location

Tone = t.Literal["good", "warn", "bad", "idle"]

#: Seconds that a step of a rotation takes beyond the propagation window, with all
#: retries, before somebody should look at it.
_STEP: t.Final = 300.0

#: The states of an open rotation, in their order, and what goes on in them.
_STEPS: t.Final = {
    "INTENT": "a new value is being made",
    "PREPARED": "the new value waits until every host knows it",
    "APPLYING": "the new value is being set where it is used",
    "PROMOTED": "the new value is in use, and the old one is still taken",
}

_UNREADABLE: t.Final = "its record is none that this version can read"

_OPERATION: t.Final = re.compile(r"[0-9a-f]{8}(?=[0-9a-f-]{24,28}\Z)")


@dataclasses.dataclass(frozen=True)
class Mark:
    """A key on the time line of its ring."""

    version: int
    state: State
    note: str


@dataclasses.dataclass(frozen=True)
class Step:
    """A step on the way of a rotation."""

    name: str
    stage: t.Literal["done", "present", "ahead"]


@dataclasses.dataclass(frozen=True)
class OpenRotation:
    """A rotation that was begun and not finished.

    :param note: by which operation, and since when it is at this step.
    :param meaning: what goes on at this step.
    :param cure: what to run when it takes longer than it should.
    """

    title: str
    note: str
    meaning: str
    steps: tuple[Step, ...] = ()
    cure: str | None = None


class Row(t.NamedTuple):
    """One secret. A tuple, since there may be hundreds.

    :param tone: of the row: whether somebody should look at it.
    :param source_tone: whether the value is Vault's.
    :param problems: types of exceptions.
    :param marks: of a key ring, in the order in which they sign.
    :param next_change: in which time the ring changes by itself.
    """

    key: str
    reference: str
    source: str
    source_tone: Tone
    tone: Tone
    version: int | None
    age: str | None
    problems: tuple[str, ...]
    marks: tuple[Mark, ...]
    next_change: str | None
    rotations: tuple[OpenRotation, ...]


def age(seconds: int) -> str:
    """An age that is not broken over two lines."""
    return durations.age(seconds).replace(" ", "\u00a0")


def rows_of(
    state: AppState,
    details: cabc.Mapping[str, t.Any],
    now: datetime.datetime,
    errors: cabc.Mapping[Location, VaultError],
) -> tuple[Row, ...]:
    """All secrets, those first that need a look.

    :param details: the health's.
    :param now: by the server's clock.
    :param errors: what is wrong with single documents.
    """
    rows = [
        _row(state, entry, details["secrets"].get(entry.key, {}), now, errors)
        for entry in state.entries
    ]
    return tuple(sorted(rows, key=lambda row: row.tone == "good"))


def _row(
    state: AppState,
    entry: Entry,
    known: cabc.Mapping[str, t.Any],
    now: datetime.datetime,
    errors: cabc.Mapping[Location, VaultError],
) -> Row:
    place = state.client.catalog.location_of(entry)
    held = state.live.applied.get(place)
    source, seconds = known.get("source", "unset"), known.get("age_seconds")
    problems: set[str] = {known["error"]} if known.get("error") else set()

    if place in errors:
        problems.add(type(errors[place]).__name__)

    patience = state.settings.propagation_window + _STEP
    rotations = (
        ()
        if held is None or held.document.data.get(RESERVED_FIELD) is None
        else tuple(_open_rotations(entry, held.document, now, patience))
    )
    source_tone = _tone_of(source, state.settings.enabled)
    tone = "good" if source_tone == "idle" else source_tone

    if tone == "good" and (problems or any(r.cure for r in rotations)):
        tone = "warn"

    ring = state.live.rings.get(entry.key)
    return Row(
        entry.key,
        shown_reference(entry.reference),
        source,
        source_tone,
        tone,
        known.get("version"),
        None if seconds is None else age(seconds),
        tuple(sorted(problems)),
        () if ring is None else tuple(_mark(key, now) for key in _by_time(ring)),
        _next_change(ring, now),
        rotations,
    )


def _tone_of(source: str, enabled: bool) -> Tone:
    if not enabled:
        return "idle"

    return "good" if source == "vault" else "bad" if source == "unset" else "warn"


def shown_reference(reference: Reference) -> str:
    """A reference as it is declared; of an absolute one without the mount.

    Which of its segments are the mount the reference does not tell. The last is none.
    """
    if not reference.absolute:
        return str(reference)

    last = reference.path.rpartition("/")[2]
    return f"\u2026/{last}" + (f"#{reference.field}" if reference.field else "")


def _by_time(ring: KeyRing) -> list[Key]:
    return sorted(ring.accepted, key=lambda key: (key.signs_at, key.version))


def _mark(key: Key, now: datetime.datetime) -> Mark:
    if key.state == "pending":
        note = f"signs in {_until(key.signs_at, now)}"
    elif key.state == "retired":
        note = "accepted" if key.until is None else f"{_until(key.until, now)} left"
    else:
        # A value without a history has signed since ever.
        note = f"for {_until(now, key.signs_at)}" if key.version else ""

    return Mark(key.version, key.state, note)


def _next_change(ring: KeyRing | None, now: datetime.datetime) -> str | None:
    if ring is None or ring.next_change is None:
        return None

    return _until(ring.next_change, now)


def _until(later: datetime.datetime, earlier: datetime.datetime) -> str:
    return age(max(0, int((later - earlier).total_seconds())))


def _open_rotations(
    entry: Entry, document: Document, now: datetime.datetime, patience: float
) -> cabc.Iterator[OpenRotation]:
    """The rotations of an entry that its document tells of.

    The record has the old and the new value. Of what it holds, only what is known to be
    none is taken.

    :param patience: seconds after which a step should be over.
    """
    journal = document.data[RESERVED_FIELD]

    if not isinstance(journal, cabc.Mapping) or journal.get("v") != 1:
        yield OpenRotation("Open rotation", "", _UNREADABLE)
        return

    fields = {entry.rotated_field, entry.reference.field} - {None}

    for field, record in journal.items():
        if field == "v" or (fields and field not in fields):
            continue

        state = record.get("state") if isinstance(record, cabc.Mapping) else None

        if not isinstance(state, str) or state not in _STEPS:
            yield OpenRotation("Open rotation", "", _UNREADABLE)
            continue

        kind = record.get("kind")
        kind = kind if kind in Rotation.KINDS else "unknown"
        operation = _OPERATION.match(str(record.get("op")))
        notes = [f"operation {operation[0]}"] if operation else []
        late = False

        if document.created is not None:
            # Each step is a write.
            since = max(0, int((now - document.created).total_seconds()))
            notes.append(f"at this step for {age(since)}")
            late = since > patience

        yield OpenRotation(
            f"Open {kind} rotation" + (f" of {field}" if field in fields else ""),
            ", ".join(notes),
            _STEPS[state],
            tuple(_steps(state, kind)),
            f"flask vault rotate --secret {entry.key}" if late else None,
        )


def _steps(state: str, kind: str) -> cabc.Iterator[Step]:
    names = list(_STEPS)
    present = names.index(state)

    for index, name in enumerate(names):
        # Only a value that somebody else makes is announced first.
        if name == "INTENT" and kind != "callable" and state != name:
            continue

        yield Step(
            name,
            "done" if index < present else "ahead" if index > present else "present",
        )
