"""Which value signs and which are accepted: a pure function of a version history.

Every worker on every host computes the same ring from the created times that KV v2
keeps, by the server's clock. So there is nothing to coordinate, and a write by hand
gets the same treatment as ours.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import datetime
import hashlib
import hmac
import json
import typing as t

State = t.Literal["pending", "signing", "retired"]

#: The value of a version that nobody needs any more, or nobody can read.
UNKNOWN: t.Final = object()


@dataclasses.dataclass(frozen=True)
class Version:
    """One value of a version history.

    :param number: KV v2's version.
    :param value: :data:`UNKNOWN` for a version that is older than a ring's memory.
    :param created: when it was written, by the server's clock.
    :param deleted: from when on it is deleted, which may lie ahead
        (``delete_version_after``).
    :param destroyed: it is gone for good.
    """

    number: int
    created: datetime.datetime
    value: t.Any = dataclasses.field(repr=False)
    deleted: datetime.datetime | None = None
    destroyed: bool = False

    def is_usable(self, now: datetime.datetime) -> bool:
        """Whether the value may be accepted at all."""
        gone = self.destroyed or (self.deleted is not None and self.deleted <= now)
        return not gone and self.value is not UNKNOWN


@dataclasses.dataclass(frozen=True)
class Key:
    """One value of a ring.

    :param id: names the value wherever it comes from, the same on every host. It goes
        into tokens as ``kid``. An HMAC under the value itself, of which it tells as
        much as any signature that is made with it.
    :param version: the newest version that holds the value, for people.
    :param state: ``pending`` is accepted and does not sign yet; ``retired`` is accepted
        and signs no more.
    :param created: when the value was first written.
    :param signs_at: when it signs, or when it began to.
    :param until: when it is accepted no more; ``None`` while nothing replaces it.
    """

    id: str
    value: t.Any = dataclasses.field(repr=False)
    version: int
    state: State
    created: datetime.datetime
    signs_at: datetime.datetime
    until: datetime.datetime | None


@dataclasses.dataclass(frozen=True)
class KeyRing:
    """The value that signs, and all that are accepted. Never changed, only replaced.

    :param accepted: the newest first; the one that signs is among them.
    :param next_change: when time alone makes another ring of this one.
    """

    accepted: tuple[Key, ...]
    next_change: datetime.datetime | None

    @property
    def signing(self) -> Key:
        """The key that signs."""
        return next(key for key in self.accepted if key.state == "signing")

    def get(self, id: str) -> Key | None:
        """The accepted key with an id; ``None`` when it is retired or unknown."""
        return next((key for key in self.accepted if key.id == id), None)

    def same_values(self, other: KeyRing | None) -> bool:
        """Whether the same key signs and the same ones are accepted."""
        if other is None:
            return False

        return [(k.id, k.state) for k in self.accepted] == [
            (k.id, k.state) for k in other.accepted
        ]


@dataclasses.dataclass
class _Reign:
    """A stretch of versions that hold one value, and the time in which it signs."""

    value: t.Any
    version: int
    created: datetime.datetime
    begins: datetime.datetime
    #: When the next one begins to sign; ``None`` for the newest.
    ends: datetime.datetime | None = None


def key_id(value: t.Any) -> str:
    """The id of a value: 72 bits, as URL-safe base64."""
    if isinstance(value, bytes):
        secret = value
    elif isinstance(value, str):
        # JSON may hold half of a pair, and an error here would show the value.
        secret = value.encode("utf-8", "surrogatepass")
    else:
        secret = json.dumps(value, sort_keys=True, default=str).encode()

    digest = hmac.digest(secret, b"flask-vault key id", hashlib.sha256)
    return base64.urlsafe_b64encode(digest[:9]).decode("ascii")


def fixed(value: t.Any) -> KeyRing:
    """The ring of a value that has no history: it comes from the environment, or is a
    default, or Vault is off."""
    never = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
    key = Key(key_id(value), value, 0, "signing", never, never, None)
    return KeyRing((key,), None)


def compute(
    versions: cabc.Iterable[Version],
    now: datetime.datetime,
    *,
    propagation_window: datetime.timedelta,
    retire_after: datetime.timedelta,
) -> KeyRing:
    """Make the ring of a history.

    A value is accepted from its creation, signs when the propagation window has passed,
    and is accepted for ``retire_after`` longer than it signs. Neighbours with the same
    value are one: another field of the document was written. The oldest value signs at
    once, since nobody can sign with one before it.

    A deleted version is as if it had never been written: the value before it signs on,
    until the next one's time has come. Were the next one to sign at once, the hosts
    that have not seen it yet would refuse what it signs. It signs at once when there is
    no value before it.

    :param versions: in any order.
    :param now: by the server's clock.
    :param propagation_window: how long all workers may take to learn of a value.
    :param retire_after: how long what a value has signed is of use.
    :raises LookupError: when no version is usable.
    """
    ordered = sorted(versions, key=lambda version: version.number)
    usable = [version for version in ordered if version.is_usable(now)]

    if not usable:
        raise LookupError("no version is usable")

    reigns = _reigns(usable, propagation_window)
    # One begins after the other, so this counts those before the one that is due.
    signing = max(0, sum(reign.begins <= now for reign in reigns) - 1)
    found: list[Key] = []

    for index, reign in enumerate(reigns):
        until = None if reign.ends is None else reign.ends + retire_after

        if index == signing:
            state: State = "signing"
        elif index > signing:
            state = "pending"
        elif until is not None and until > now:
            state = "retired"
        else:
            continue

        found.append(
            Key(
                key_id(reign.value),
                reign.value,
                reign.version,
                state,
                reign.created,
                reign.begins,
                until,
            )
        )

    accepted = _by_value(found)
    changes = [key.signs_at for key in accepted if key.state == "pending"]
    changes += [key.until for key in accepted if key.state == "retired" and key.until]
    # What is deleted later changes the ring as well.
    changes += [version.deleted for version in usable if version.deleted]
    return KeyRing(accepted, min(changes, default=None))


def _by_value(found: cabc.Sequence[Key]) -> tuple[Key, ...]:
    """One key for each value, the newest first.

    A value that came back, as by a restore, is what it is of most use for: it signs,
    or it will soon, or it did last.
    """
    signing = [key.state for key in found].index("signing")
    kept: dict[str, Key] = {}

    for key in (*found[signing:], *reversed(found[:signing])):
        kept.setdefault(key.id, key)

    return tuple(sorted(kept.values(), key=lambda key: -key.version))


def _reigns(
    versions: cabc.Iterable[Version], window: datetime.timedelta
) -> list[_Reign]:
    reigns: list[_Reign] = []

    for version in versions:
        if not reigns:
            begins = version.created
        elif reigns[-1].value == version.value:
            reigns[-1].version = version.number
            continue
        else:
            # A clock that was set back lets no older value sign after a newer one.
            begins = max(version.created + window, reigns[-1].begins)
            reigns[-1].ends = begins

        reigns.append(_Reign(version.value, version.number, version.created, begins))

    return reigns
