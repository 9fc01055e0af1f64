"""How far a rotation is, as a person sees it."""

from __future__ import annotations

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
    tell(Reporter())
    _, bars, last, _ = capsys.readouterr().err.split("\n")
    assert [bar.strip() for bar in bars.split("database#password: waiting")[1:]] == [
        "[------------------------]  120 s",
        "[############------------]   60 s",
        "[########################]    0 s",
    ]
    assert last == "database#password: applying (1f2e3d4c)"


def test_with_json_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Reporter(quiet=True))
    assert capsys.readouterr().err == ""
