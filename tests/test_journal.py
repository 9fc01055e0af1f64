"""What an unfinished rotation leaves in its document."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_vault import RotationError
from flask_vault.rotation.journal import candidates
from flask_vault.rotation.journal import promoted
from flask_vault.rotation.journal import Record
from flask_vault.rotation.journal import record_of
from flask_vault.rotation.journal import records
from flask_vault.rotation.journal import State
from flask_vault.rotation.journal import STATES
from flask_vault.rotation.journal import with_record
from flask_vault.rotation.journal import without_record

LIVE = {"username": "app", "password": "old", "host": "db"}
PREPARED = Record("a" * 32, "database", "PREPARED", {"password": "new"})

values = st.none() | st.dictionaries(st.sampled_from(["x", "y"]), st.text(), min_size=1)


@given(
    st.builds(
        Record,
        st.text("0123456789abcdef", min_size=32, max_size=32),
        st.text(min_size=1),
        st.sampled_from([s for s in STATES if s not in ("PREPARED", "APPLYING")]),
        values,
        values,
        st.none() | st.text(),
        st.none() | st.text(),
        st.integers(0, 9),
    )
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert record_of(with_record(LIVE, "password", record), "password") == record


def test_a_document_has_a_record_for_each_field_and_no_journal_without_any() -> None:
    one = with_record(LIVE, "password", PREPARED)
    two = with_record(one, "username", PREPARED)
    assert set(records(two)) == {"password", "username"}
    assert without_record(two, "username") == one
    assert without_record(one, "password") == LIVE
    assert without_record(LIVE, "password") == LIVE


def test_promotion_swaps_the_values_and_notes_the_old_ones() -> None:
    record = dataclasses.replace(
        PREPARED, state="APPLYING", pending={"username": "b", "password": "new"}
    )
    after = promoted(with_record(LIVE, "password", record), "password", record)
    assert (after["username"], after["password"], after["host"]) == ("b", "new", "db")
    found = record_of(after, "password")
    assert found is not None
    assert (found.state, found.pending) == ("PROMOTED", None)
    assert found.previous == {"username": "app", "password": "old"}


@pytest.mark.parametrize(
    ("state", "pending", "previous", "passwords"),
    [
        ("INTENT", None, None, ["old"]),
        ("PREPARED", {"password": "new"}, None, ["old", "new"]),
        ("APPLYING", {"password": "new"}, None, ["old", "new"]),
        ("APPLYING", {"password": "old"}, None, ["old"]),
        ("PROMOTED", None, {"password": "older"}, ["old", "older"]),
        (
            "APPLYING",
            {"password": "new"},
            {"password": "older"},
            ["old", "new", "older"],
        ),
    ],
)
def test_the_candidates_are_current_pending_previous(
    state: State,
    pending: dict[str, str] | None,
    previous: dict[str, str] | None,
    passwords: list[str],
) -> None:
    record = Record("a" * 32, "database", state, pending, previous)
    found = candidates(with_record(LIVE, "password", record), "password")
    assert [one["password"] for one in found] == passwords
    assert all(one.keys() == LIVE.keys() for one in found)


def test_without_a_rotation_the_only_candidate_is_the_document() -> None:
    assert candidates(LIVE, "password") == [LIVE]
    other = with_record(LIVE, "username", PREPARED)
    assert candidates(other, "password") == [LIVE]


@pytest.mark.parametrize(
    "journal",
    [
        "text",
        {"v": 2, "password": PREPARED.to_json()},
        {"v": 1, "password": "x"},
        {"v": 1, "password": {**PREPARED.to_json(), "state": "IDLE"}},
        {"v": 1, "password": {**PREPARED.to_json(), "pending": None}},
        {"v": 1, "password": {**PREPARED.to_json(), "op": 3}},
    ],
)
def test_what_is_no_journal_stops_a_rotation_and_no_connection(journal: t.Any) -> None:
    data = {**LIVE, "_rotation": journal}

    with pytest.raises(RotationError, match="vault kv rollback"):
        records(data)

    assert candidates(data, "password") == [LIVE]


def test_a_record_does_not_show_values() -> None:
    assert "new" not in repr(PREPARED)
