"""What an unfinished rotation leaves in the document that it rotates.

The reserved field ``_rotation`` holds one record for each field of the document that is
being rotated, so that whoever runs the command next can go on, on any host:

.. code-block:: text

    {"v": 1,
     "password": {
        "op": "...",              the operation's id, the hexadecimal form of a UUID
        "kind": "database",
        "state": "PREPARED",
        "pending": {"password": "..."},     what the fields will be, or null
        "previous": null,                   what they were, or null
        "attempt": null,                    the nonce of who is at it; "abort-..." of
                                            who gives it up
        "backup": null,                     the name of the backup's file
        "rejected": 0                       values that the target did not take
     }}

=============  ======================================================================
state          what is known
=============  ======================================================================
(no record)    nothing is going on
``INTENT``     a value may have been made elsewhere, under the operation's id
``PREPARED``   the new value is here, and nothing uses it
``APPLYING``   the target takes the old value or the new one
``PROMOTED``   the document's fields are the new value; the old one may still be taken
=============  ======================================================================

Everything here is a pure function of a document's fields. Whoever opens connections
asks :func:`candidates`, and is refused at no instant of a rotation.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from ..errors import RotationError

#: The field of a document that is ours.
RESERVED_FIELD: t.Final = "_rotation"

State = t.Literal["INTENT", "PREPARED", "APPLYING", "PROMOTED"]

STATES: t.Final[tuple[State, ...]] = ("INTENT", "PREPARED", "APPLYING", "PROMOTED")

_VERSION: t.Final = 1

Fields = cabc.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Record:
    """The rotation of one field, as it stands."""

    operation: str
    kind: str
    state: State
    pending: Fields | None = dataclasses.field(default=None, repr=False)
    previous: Fields | None = dataclasses.field(default=None, repr=False)
    attempt: str | None = None
    backup: str | None = None
    rejected: int = 0

    def to_json(self) -> dict[str, t.Any]:
        """The form in which it is stored."""
        return {
            "op": self.operation,
            "kind": self.kind,
            "state": self.state,
            "pending": None if self.pending is None else dict(self.pending),
            "previous": None if self.previous is None else dict(self.previous),
            "attempt": self.attempt,
            "backup": self.backup,
            "rejected": self.rejected,
        }


def visible(data: Fields) -> dict[str, t.Any]:
    """The fields of a document without the journal."""
    return {name: value for name, value in data.items() if name != RESERVED_FIELD}


def records(data: Fields) -> dict[str, Record]:
    """The open rotations of a document, by field.

    :raises RotationError: when the journal is none, or a later version's.
    """
    raw = data.get(RESERVED_FIELD)

    if raw is None:
        return {}

    if not isinstance(raw, cabc.Mapping) or raw.get("v") != _VERSION:
        raise _unreadable()

    return {name: _parse(value) for name, value in raw.items() if name != "v"}


def record_of(data: Fields, field: str) -> Record | None:
    """The open rotation of a field, or ``None``.

    :raises RotationError: as :func:`records`.
    """
    return records(data).get(field)


def with_record(data: Fields, field: str, record: Record) -> dict[str, t.Any]:
    """The document with another record for a field."""
    stored = {**data.get(RESERVED_FIELD, {}), "v": _VERSION, field: record.to_json()}
    return {**data, RESERVED_FIELD: stored}


def without_record(data: Fields, field: str) -> dict[str, t.Any]:
    """The document with no record for a field, and no journal when it was the last."""
    left = {k: v for k, v in data.get(RESERVED_FIELD, {}).items() if k != field}
    return {**visible(data), **({} if left.keys() <= {"v"} else {RESERVED_FIELD: left})}


def promoted(data: Fields, field: str, record: Record) -> dict[str, t.Any]:
    """The document with the pending values in place, and the old ones noted."""
    pending = record.pending or {}
    after = dataclasses.replace(
        record,
        state="PROMOTED",
        pending=None,
        previous={name: data[name] for name in pending if name in data},
        attempt=None,
    )
    return with_record({**data, **pending}, field, after)


def candidates(data: Fields, field: str) -> list[dict[str, t.Any]]:
    """What a document may have to be for its target to accept it.

    While a rotation is open, the target takes the current value, the pending or the
    previous one, and no clock says when it changes: try them in this order.

    :param field: the one that is rotated.
    :return: the document's fields with each of the values, the current one first, at
        most three. One when no rotation is open, or its record cannot be read.
    """
    current = visible(data)
    found = [current]

    try:
        record = record_of(data, field)
    except RotationError:
        # A connection must not fail for what a rotation left behind.
        return found

    if record is not None:
        for other in (record.pending, record.previous):
            changed = {**current, **(other or {})}

            if changed not in found:
                found.append(changed)

    return found


def _parse(raw: object) -> Record:
    if not isinstance(raw, cabc.Mapping) or raw.get("state") not in STATES:
        raise _unreadable()

    operation, kind = raw.get("op"), raw.get("kind")
    attempt, backup = raw.get("attempt"), raw.get("backup")
    pending, previous = raw.get("pending"), raw.get("previous")
    rejected = raw.get("rejected", 0)

    if (
        not isinstance(operation, str)
        or not isinstance(kind, str)
        or not isinstance(attempt, str | None)
        or not isinstance(backup, str | None)
        or not isinstance(pending, cabc.Mapping | None)
        or not isinstance(previous, cabc.Mapping | None)
        or not isinstance(rejected, int)
        or (raw["state"] in ("PREPARED", "APPLYING") and not pending)
    ):
        raise _unreadable()

    state: State = raw["state"]
    return Record(operation, kind, state, pending, previous, attempt, backup, rejected)


def _unreadable() -> RotationError:
    return RotationError(
        f"The document's field {RESERVED_FIELD!r} is not what this version of"
        " Flask-Vault writes there: use the version that began the rotation, or bring"
        " back an older version of the document with 'vault kv rollback'."
    )
