"""Which key signs and which are accepted, on every host, at every moment.

Times are whole seconds after noon, and short, so that Hypothesis meets each boundary.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import itertools
import typing as t

import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st

from flask_vault.keyring import compute
from flask_vault.keyring import Key
from flask_vault.keyring import key_id
from flask_vault.keyring import KeyRing
from flask_vault.keyring import UNKNOWN
from flask_vault.keyring import Version

NOON = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.timezone.utc)

#: Thirteen properties, so 2,600 histories in each run.
thorough = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def at(seconds: float) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=seconds)


@dataclasses.dataclass(frozen=True)
class History:
    """What was written when, with the windows of the app that reads it."""

    versions: tuple[Version, ...]
    window: int = 10
    retire_after: int = 20

    def ring(self, now: float, polled: float | None = None) -> KeyRing:
        """The ring of a host that knows what was written up to its last poll."""
        seen = at(now if polled is None else polled)
        return self.ring_of([v for v in self.versions if v.created <= seen], now)

    def ring_of(self, versions: cabc.Iterable[Version], now: float) -> KeyRing:
        return compute(
            versions,
            at(now),
            propagation_window=datetime.timedelta(seconds=self.window),
            retire_after=datetime.timedelta(seconds=self.retire_after),
        )

    def with_versions(self, versions: cabc.Iterable[Version]) -> History:
        return dataclasses.replace(self, versions=tuple(versions))

    @property
    def memory(self) -> datetime.timedelta:
        """How long a value is of use after the next one was written."""
        return datetime.timedelta(seconds=self.window + self.retire_after)

    @property
    def moments(self) -> range:
        """Every second in which something may happen, and some more."""
        last = max(version.created for version in self.versions) + self.memory
        return range(int((last - NOON).total_seconds()) + 3)


def written(*values: tuple[int, str], **windows: int) -> History:
    """A history of ``(second, value)``."""
    versions = [
        Version(number, at(second), value)
        for number, (second, value) in enumerate(values, 1)
    ]
    return History(tuple(versions), **windows)


def gone(history: History, number: int, since: int | None = None) -> History:
    """Destroy a version, or delete it from a second on."""
    if since is None:
        return changed(history, number, destroyed=True)

    return changed(history, number, deleted=at(since))


def changed(history: History, number: int, **changes: t.Any) -> History:
    """The same history, but for one of its versions."""
    return history.with_versions(
        dataclasses.replace(version, **changes) if version.number == number else version
        for version in history.versions
    )


def is_usable(version: Version, now: float) -> bool:
    if version.destroyed or version.value is UNKNOWN:
        return False

    return version.deleted is None or version.deleted > at(now)


def states(ring: KeyRing) -> dict[str, str]:
    return {key.value: key.state for key in ring.accepted}


def uses(ring: KeyRing) -> list[tuple[object, ...]]:
    """All that a ring does, without what it only tells people."""
    return [(key.id, key.state, key.until) for key in ring.accepted]


# --- histories ---------------------------------------------------------------------

windows = st.integers(0, 10)
lifetimes = st.integers(1, 20)


@st.composite
def histories(
    draw: st.DrawFn, *, letters: str = "ABC", monotonic: bool = True
) -> History:
    """Up to seven writes; a value may be repeated, or come back."""
    gaps = draw(st.lists(st.integers(0, 14), max_size=6))
    times = [0, *itertools.accumulate(gaps)]

    if not monotonic:
        times = draw(st.permutations(times))

    values = [(second, draw(st.sampled_from(letters))) for second in times]
    return written(*values, window=draw(windows), retire_after=draw(lifetimes))


@st.composite
def histories_with_gaps(draw: st.DrawFn, *, ahead: bool = False) -> History:
    """Some versions are destroyed, deleted or unknown, and at least one is not.

    :param ahead: some will be deleted later (``delete_version_after``).
    """
    history = draw(histories())
    fates = draw(
        st.lists(
            st.sampled_from(["kept", "destroyed", "deleted", "unknown"]),
            min_size=len(history.versions),
            max_size=len(history.versions),
        ).filter(lambda fates: "kept" in fates)
    )

    for number, fate in enumerate(fates, 1):
        if fate == "destroyed":
            history = gone(history, number)
        elif fate == "unknown":
            history = changed(history, number, value=UNKNOWN)
        elif fate == "deleted":
            history = gone(history, number, draw(st.integers(1, 60)) if ahead else -1)

    return history


@st.composite
def moments(draw: st.DrawFn, history: History) -> int:
    return draw(st.sampled_from(history.moments))


class Meeting(t.NamedTuple):
    """Two hosts at work on the requests of one user."""

    nows: tuple[int, int]
    polls: tuple[int, int]


@st.composite
def meetings(draw: st.DrawFn, history: History) -> Meeting:
    """Each has polled in the last window; their requests are up to 1 s apart."""
    later = draw(moments(history))
    earlier = max(0, later - draw(st.integers(0, min(1, history.window))))
    polls = [
        draw(st.integers(max(0, later - history.window), now))
        for now in (earlier, later)
    ]
    return Meeting((earlier, later), (polls[0], polls[1]))


def assert_agreement(history: History, meeting: Meeting) -> None:
    one, other = (
        history.ring(now, polled)
        for now, polled in zip(meeting.nows, meeting.polls, strict=True)
    )
    assert other.get(one.signing.id) is not None
    assert one.get(other.signing.id) is not None


# --- what every host can rely on ---------------------------------------------------


@thorough
@given(st.data())
def test_what_one_host_signs_every_other_accepts(data: st.DataObject) -> None:
    history = data.draw(histories())
    assert_agreement(history, data.draw(meetings(history)))


@thorough
@given(st.data())
def test_hosts_agree_when_they_know_of_the_same_deletions(data: st.DataObject) -> None:
    history = data.draw(histories_with_gaps())
    meeting = data.draw(meetings(history))
    oldest = next(v for v in history.versions if is_usable(v, meeting.nows[0]))
    # Nothing can be done for a host that has no usable key at all.
    assume(all(oldest.created <= at(polled) for polled in meeting.polls))

    assert_agreement(history, meeting)


@thorough
@given(st.data())
def test_exactly_one_key_signs_and_no_value_is_there_twice(data: st.DataObject) -> None:
    history = data.draw(histories_with_gaps(ahead=True))
    now = data.draw(moments(history))
    assume(any(is_usable(version, now) for version in history.versions))
    ring = history.ring_of(history.versions, now)

    assert [key.state for key in ring.accepted].count("signing") == 1
    assert len({key.id for key in ring.accepted}) == len(ring.accepted)
    assert ring.get(ring.signing.id) is ring.signing
    assert [key.version for key in ring.accepted] == sorted(
        (key.version for key in ring.accepted), reverse=True
    )


@thorough
@given(histories(letters="ABCDEFG"))
def test_time_moves_a_value_only_forward(history: History) -> None:
    values = [value for value, _ in stretches(history)]
    assume(len(set(values)) == len(values))
    path = ["absent", "pending", "signing", "retired", "gone"]
    reached = dict.fromkeys(values, "absent")

    for now in history.moments:
        found = states(history.ring(now))

        for value, before in reached.items():
            missing = "absent" if before == "absent" else "gone"
            state = found.get(value, missing)
            assert path.index(state) >= path.index(before)
            reached[value] = state

    assert reached.pop(values[-1]) == "signing"
    assert set(reached.values()) <= {"absent", "gone"}


@thorough
@given(histories(letters="AB"))
def test_a_value_that_comes_back_is_what_its_stretches_are(history: History) -> None:
    """It signs when one of them does; else it is what the newest of them is."""
    apart = history.with_versions(
        dataclasses.replace(version, value=f"{version.value}{stretch}")
        for stretch, (_, members) in enumerate(stretches(history))
        for version in members
    )

    for now in history.moments:
        expected: dict[str, str] = {}

        for key in sorted(
            apart.ring(now).accepted, key=lambda key: key.state != "signing"
        ):
            expected.setdefault(key.value[0], key.state)

        assert states(history.ring(now)) == expected


@thorough
@given(st.data())
def test_what_is_deleted_destroyed_or_unknown_is_never_accepted(
    data: st.DataObject,
) -> None:
    history = data.draw(histories_with_gaps(ahead=True))
    now = data.draw(moments(history))
    usable = {v.value for v in history.versions if is_usable(v, now)}
    assume(usable)

    assert set(states(history.ring_of(history.versions, now))) <= usable


@thorough
@given(st.data())
def test_nothing_changes_before_the_next_change(data: st.DataObject) -> None:
    """So nobody has to look at the clock in between."""
    history = data.draw(histories_with_gaps(ahead=True))
    now = data.draw(moments(history))
    assume(any(is_usable(version, now) for version in history.versions))
    ring = history.ring_of(history.versions, now)

    for later in range(now, history.moments.stop + 61):
        if ring.next_change is not None and at(later) >= ring.next_change:
            break

        assert history.ring_of(history.versions, later) == ring


@thorough
@given(st.data())
def test_the_next_change_is_one(data: st.DataObject) -> None:
    history = data.draw(histories())
    ring = history.ring_of(history.versions, data.draw(moments(history)))

    if ring.next_change is not None:
        then = int((ring.next_change - NOON).total_seconds())
        assert history.ring_of(history.versions, then).accepted != ring.accepted


@thorough
@given(st.data())
def test_a_value_that_is_written_again_starts_nothing_anew(data: st.DataObject) -> None:
    """Another field of the document has changed."""
    history = data.draw(histories())
    again = data.draw(st.sampled_from(history.versions))
    following = history.versions[again.number :]
    latest = following[0].created if following else again.created + history.memory
    created = data.draw(st.datetimes(*naive(again.created, latest))).replace(
        tzinfo=datetime.timezone.utc
    )
    repeated = Version(again.number + 1, created, again.value)
    moved = [dataclasses.replace(v, number=v.number + 1) for v in following]
    longer = [*history.versions[: again.number], repeated, *moved]
    now = data.draw(moments(history))
    before, after = history.ring_of(history.versions, now), history.ring_of(longer, now)

    assert uses(after) == uses(before)
    assert after.next_change == before.next_change


@thorough
@given(st.data())
def test_the_order_in_which_versions_are_given_does_not_matter(
    data: st.DataObject,
) -> None:
    history = data.draw(histories_with_gaps())
    now = data.draw(moments(history))
    shuffled = data.draw(st.permutations(history.versions))

    assert history.ring_of(shuffled, now) == history.ring_of(history.versions, now)


@thorough
@given(st.data())
def test_what_is_forgotten_in_time_is_not_missed(data: st.DataObject) -> None:
    """A ring need not know what was replaced a window and ``retire_after`` ago."""
    history = data.draw(histories_with_gaps())
    now = data.draw(moments(history))
    replaced = [
        version.number
        for version in history.versions
        if is_usable(version, now) and version.created + history.memory <= at(now)
    ]
    remembered = [
        dataclasses.replace(version, value=UNKNOWN)
        if version.number < max(replaced, default=0)
        else version
        for version in history.versions
    ]
    ring = history.ring_of(remembered, now)
    full = history.ring_of(history.versions, now)

    assert uses(ring) == uses(full)
    assert ring.next_change == full.next_change


@thorough
@given(st.data())
def test_a_host_that_sees_fewer_versions_loses_no_key_that_is_in_use(
    data: st.DataObject,
) -> None:
    """``max_versions`` must hold the history of a window to keep the hosts in step.

    Only to accept the retired ones, it must hold ``retire_after``, too.
    """
    history = data.draw(histories())
    now = data.draw(moments(history))
    kept = history.versions[-data.draw(st.integers(1, len(history.versions))) :]
    age = (at(now) - kept[0].created).total_seconds()
    assume(age >= history.window)
    trimmed = history.ring_of(kept, now)
    full = history.ring_of(history.versions, now)

    assert trimmed.signing.id == full.signing.id
    assert {key.id for key in trimmed.accepted} <= {key.id for key in full.accepted}

    if age >= history.window + history.retire_after:
        assert uses(trimmed) == uses(full)


@thorough
@given(histories(letters="ABCDEFG", monotonic=False))
def test_a_server_clock_that_was_set_back_brings_no_older_key_back(
    history: History,
) -> None:
    signing = [
        history.ring_of(history.versions, now).signing.signs_at
        for now in history.moments
    ]
    assert signing == sorted(signing)


def stretches(history: History) -> list[tuple[str, list[Version]]]:
    """The versions, with neighbours of the same value together."""
    grouped = itertools.groupby(history.versions, key=lambda version: version.value)
    return [(value, list(members)) for value, members in grouped]


def naive(*times: datetime.datetime) -> list[datetime.datetime]:
    return [time.replace(tzinfo=None) for time in times]


# --- by example --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (99, {"old": "signing"}),
        (100, {"new": "pending", "old": "signing"}),
        (109, {"new": "pending", "old": "signing"}),
        (110, {"new": "signing", "old": "retired"}),
        (129, {"new": "signing", "old": "retired"}),
        (130, {"new": "signing"}),
    ],
)
def test_the_life_of_a_key(now: int, expected: dict[str, str]) -> None:
    history = written((0, "old"), (100, "new"), window=10, retire_after=20)
    assert states(history.ring(now)) == expected


def test_a_key_tells_when_its_state_changes() -> None:
    new, old = written((0, "old"), (100, "new")).ring(100).accepted

    assert (new.version, new.created, new.signs_at) == (2, at(100), at(110))
    assert new.until is None
    assert (old.version, old.signs_at, old.until) == (1, at(0), at(130))


def test_the_ring_tells_when_it_changes_next() -> None:
    history = written((0, "old"), (100, "new"))

    assert history.ring(99).next_change is None
    assert history.ring(100).next_change == at(110)
    assert history.ring(110).next_change == at(130)
    assert history.ring(130).next_change is None


def test_the_first_key_of_all_signs_at_once() -> None:
    assert states(written((0, "first")).ring(0)) == {"first": "signing"}


def test_with_no_window_a_key_signs_at_once() -> None:
    history = written((0, "old"), (100, "new"), window=0)
    assert states(history.ring(100)) == {"new": "signing", "old": "retired"}


def test_a_value_that_was_restored_signs_again_after_a_window() -> None:
    history = written((0, "A"), (100, "B"), (115, "A"))

    assert states(history.ring(114)) == {"B": "signing", "A": "retired"}
    assert states(history.ring(115)) == {"B": "signing", "A": "pending"}
    assert states(history.ring(125)) == {"B": "retired", "A": "signing"}


def test_a_leaked_key_is_refused_and_the_new_one_signs_at_once() -> None:
    history = gone(written((0, "leaked"), (100, "new")), 1)
    assert states(history.ring(101)) == {"new": "signing"}


def test_when_the_newest_is_deleted_the_one_before_it_signs() -> None:
    history = gone(written((0, "old"), (100, "new")), 2, since=150)

    assert states(history.ring(149)) == {"new": "signing"}
    assert history.ring(149).next_change == at(150)
    assert states(history.ring(150)) == {"old": "signing"}


def test_a_key_after_a_deleted_one_is_accepted_before_it_signs() -> None:
    """A wrong value was written, deleted, and then the right one was written."""
    history = gone(written((0, "old"), (100, "wrong"), (109, "right")), 2)
    assert states(history.ring(112)) == {"right": "pending", "old": "signing"}


def test_a_key_that_signed_in_place_of_a_deleted_one_is_retired_in_its_time() -> None:
    history = gone(written((0, "old"), (100, "wrong"), (500, "right")), 2)

    assert states(history.ring(510)) == {"right": "signing", "old": "retired"}
    assert history.ring(510).next_change == at(530)


def test_a_value_that_came_back_wakes_nobody_for_its_first_time() -> None:
    history = written((0, "A"), (100, "B"), (101, "A"))
    # At 130 the first time of A is over, which nobody can see.
    assert history.ring(111).next_change == at(131)


def test_a_value_that_comes_back_twice_signs_when_its_first_time_has_come() -> None:
    history = written((0, "A"), (10, "B"), (11, "A"), (14, "B"), window=5)
    ring = history.ring(14)

    assert states(ring) == {"B": "pending", "A": "signing"}
    assert ring.next_change == at(15)
    assert states(history.ring(15)) == {"B": "signing", "A": "pending"}


def test_a_history_without_a_usable_version_has_no_ring() -> None:
    history = gone(written((0, "old")), 1)

    with pytest.raises(LookupError):
        history.ring(1)


def test_rings_are_the_same_when_the_same_keys_do_the_same() -> None:
    history = written((0, "old"), (100, "new"))
    ring = history.ring(100)

    assert ring.same_values(history.ring(101))
    assert not ring.same_values(history.ring(110))
    assert not ring.same_values(None)


# --- ids ---------------------------------------------------------------------------


def test_an_id_is_that_of_the_value_wherever_it_comes_from() -> None:
    assert key_id("k-1") == key_id(b"k-1") == "Iev1f2ATDCxU"
    assert key_id({"a": 1, "b": 2}) == key_id({"b": 2, "a": 1})


@given(st.text(), st.text())
@settings(deadline=None)
def test_an_id_is_fit_for_a_header_and_tells_values_apart(a: str, b: str) -> None:
    assert key_id(a).replace("-", "").replace("_", "").isalnum()
    assert (key_id(a) == key_id(b)) is (a == b)


def test_text_that_is_no_unicode_has_an_id_too() -> None:
    """JSON may hold it, and an error of the codec would hold the value."""
    assert key_id("\ud800") != key_id("\ud801")


def test_no_value_is_shown() -> None:
    history = written((0, "canary-1"), (5, "canary-2"))
    key: Key = history.ring(6).signing

    assert "canary" not in repr(history.ring(6)) + repr(key) + repr(history.versions)
