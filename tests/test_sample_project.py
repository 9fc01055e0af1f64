"""The project that the page about testing shows, as its author would test it."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.test_deployment import ROOT

PROJECT = ROOT / "docs" / "samples" / "shop"
LEVELS = sorted(path.name for path in (PROJECT / "tests").glob("test_*.py"))


def run(folder: pathlib.Path, level: str, **environ: str) -> str:
    """Run a file of the project's tests, with the plugins that are there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/{level}"],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy outside of this repository, whose own configuration would hold for it."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    return pathlib.Path(shutil.copytree(PROJECT, tmp_path / "shop", ignore=ignore))


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_of_its_suite_passes(level: str, project: pathlib.Path) -> None:
    assert re.search(r"^[1-9]\d* passed in", run(project, level), re.M)


def test_the_first_level_needs_no_server(project: pathlib.Path) -> None:
    nothing = {"FLASK_VAULT_SERVER_BINARY": str(project / "gone"), "PATH": ""}
    assert "passed" in run(project, "test_offline.py", **nothing)


def test_there_are_three_levels_and_the_page_shows_them_all() -> None:
    assert LEVELS == ["test_faults.py", "test_offline.py", "test_server.py"]
    page = (ROOT / "docs" / "testing.rst").read_text("utf-8")
    shown = re.findall(r"literalinclude:: samples/shop/(\S+)", page)
    found = {
        str(path.relative_to(PROJECT))
        for path in PROJECT.rglob("*.*")
        if path.suffix in {".py", ".toml"}
    }
    assert set(shown) == found
