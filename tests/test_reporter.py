"""How far a rotation is, as a person sees it."""

from __future__ import annotations

import re
import sys

import pytest

from flask_vault.reporter import Reporter
from flask_vault.rotation.rotators import Rotator
from flask_vault.rotation.tasks import Progress
from flask_vault.rotation.tasks import Task
from flask_vault.vault.documents import Location

OPERATION = "1f2e3d4c5b6a79880716253443526170"

TASK = Task(
    Location("secret/database"),
    "database",
    "password",
    ("DATABASE_URL",),
    "database",
    Rotator,
    str,
)


def tell(report: Reporter) -> None:
    report(Progress(TASK, OPERATION, "prepared"))

    for left in (120.0, 60.0, 0.0):
        report(Progress(TASK, OPERATION, "waiting", left))

    report(Progress(TASK, OPERATION, "applying"))
    report.close()


def test_without_a_terminal_each_step_and_wait_is_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(Reporter())
    assert capsys.readouterr().err.splitlines() == [
        "database#password: prepared (1f2e3d4c)",
        "database#password: waiting 120 s for the workers",
        "database#password: applying (1f2e3d4c)",
    ]


def test_on_a_terminal_a_wait_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    # As if rich were not installed.
    monkeypatch.setitem(sys.modules, "flask_vault.bars", None)
    tell(Reporter())
    _, bars, last, _ = capsys.readouterr().err.split("\n")
    assert [bar.strip() for bar in bars.split("database#password: waiting")[1:]] == [
        "[------------------------]  120 s",
        "[############------------]   60 s",
        "[########################]    0 s",
    ]
    assert last == "database#password: applying (1f2e3d4c)"


def test_with_rich_a_bar_goes_when_the_wait_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    tell(Reporter())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    # The erasing of a line and the moves of the cursor divide what was drawn.
    drawn = [part.strip() for part in re.split(r"\x1b\[\S*?[A-Zhl]|[\r\n]", shown)]
    waits = [part for part in drawn if part.startswith("database#password: waiting")]
    assert [*dict.fromkeys(wait.split()[-2] for wait in waits)] == ["120", "60", "0"]
    assert [part for part in drawn if part and part not in waits] == [
        "database#password: prepared (1f2e3d4c)",
        "database#password: applying (1f2e3d4c)",
    ]


def test_on_a_terminal_without_a_cursor_each_step_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    tell(Reporter())
    err = capsys.readouterr().err
    assert "\r" not in err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 3


def test_with_json_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Reporter(quiet=True))
    assert capsys.readouterr().err == ""
