"""What the commands print fits the terminal, and can be read and copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_vault.layout import fold
from flask_vault.layout import lay_out
from flask_vault.layout import plain
from flask_vault.layout import wrap

HEAD = ("file", "path", "created")
BACKUP = "shop-production-tokens_20261124T114142Z_560c7ef9.json"
ROW = (BACKUP, "secret/shop/production/tokens", "2026-11-24 11:41:42")


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("shop/production#password", 16, ["shop/production", "#password"]),
        ("shop/production/tokens", 16, ["shop/production/", "tokens"]),
        ("SQLALCHEMY_DATABASE_URI", 20, ["SQLALCHEMY_DATABASE_", "URI"]),
        ("VaultPermissionError", 16, ["VaultPermission", "Error"]),
        ("2026-11-24 11:41:42", 10, ["2026-11-24", "11:41:42"]),
        ("2 signing, 1 retired", 12, ["2 signing,", "1 retired"]),
        ("found\ncure", 20, ["found", "cure"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("", 10, [""]),
    ],
)
def test_a_cell_is_folded_where_a_person_would(
    text: str, width: int, lines: list[str]
) -> None:
    assert fold(text, width) == lines


@given(text=st.text("ab/#_. 1", max_size=60), width=st.integers(1, 30))
def test_folding_loses_nothing_but_spaces(text: str, width: int) -> None:
    lines = fold(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, lines)) <= width


@given(
    rows=st.lists(st.tuples(*[st.text("ab/#_. ", max_size=50)] * 4), max_size=4),
    width=st.integers(30, 120),
)
def test_a_table_is_never_wider_than_the_terminal(
    rows: list[tuple[str, ...]], width: int
) -> None:
    table = plain(lay_out(("key", "reference", "source", "keys"), rows, width))
    assert all(len(line) <= width for line in table.split("\n"))


def test_without_a_terminal_nothing_is_folded() -> None:
    assert plain(lay_out(HEAD, [ROW])).split("\n")[1] == "  ".join(ROW)


def test_what_is_copied_stays_whole_in_a_line_of_its_own() -> None:
    assert plain(lay_out(HEAD, [ROW], 80, whole=True)).split("\n") == [
        "file",
        "  path                           created",
        BACKUP,
        "  secret/shop/production/tokens  2026-11-24 11:41:42",
    ]


def test_a_row_that_does_not_fit_is_a_block() -> None:
    assert plain(lay_out(HEAD[1:], [ROW[1:], ROW[1:]], 21)).split("\n") == [
        "path     secret/shop/",
        "         production/",
        "         tokens",
        "created  2026-11-24",
        "         11:41:42",
        "",
        "path     secret/shop/",
        "         production/",
        "         tokens",
        "created  2026-11-24",
        "         11:41:42",
    ]


def test_a_command_at_the_end_of_a_sentence_can_be_copied() -> None:
    command = f"flask vault rotate --restore {BACKUP}"
    text = f"shop: not known to be restored. Running it again is safe: {command}"
    assert wrap(text, 80).split("\n") == [
        "shop: not known to be restored. Running it again is safe:",
        f"    {command}",
    ]


def test_what_is_quoted_stays_in_one_line() -> None:
    text = "mail#password has no value: run 'flask vault set mail#password'."
    assert wrap(text, 40).split("\n") == [
        "mail#password has no value: run",
        "'flask vault set mail#password'.",
    ]
