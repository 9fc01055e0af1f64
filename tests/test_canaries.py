"""The watch over the whole run sees a leak, or it would be worth nothing."""

from __future__ import annotations

import collections.abc as cabc
import logging
import os
import pathlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from flask_vault.testing.plugin import VaultMount
from tests.canaries import Watch
from tests.test_deployment import ROOT

#: Made here, so that the watch over this very run knows nothing of it.
SECRET = "a-value-that-is-made-up"


@pytest.fixture
def watch() -> cabc.Iterator[Watch]:
    watch = Watch()
    watch.secrets.add(SECRET)
    watch.start()
    yield watch
    watch.stop()


def test_a_log_record_is_seen(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "some.library")
    logging.getLogger("some.library").debug("The header is %s.", SECRET)

    ((_, where, line),) = watch.leaks
    assert where == "log of some.library"
    assert line == "The header is <secret>."


def test_what_a_program_writes_is_seen(watch: Watch) -> None:
    subprocess.run([sys.executable, "-c", f"print({SECRET!r})"], capture_output=True)

    assert [where for _, where, _ in watch.leaks] == ["a command"]


def test_what_a_command_says_is_seen_unless_it_was_asked_to(watch: Watch) -> None:
    command = click.Command("say", callback=lambda reveal: click.echo(SECRET))
    command.params.append(click.Option(["--reveal"], is_flag=True))
    CliRunner().invoke(command, ["--reveal"])
    assert not watch.leaks

    CliRunner().invoke(command)
    assert len(watch.leaks) == 1


def test_what_a_test_writes_to_vault_is_a_secret(
    watch: Watch, vault_mount: VaultMount
) -> None:
    value = "made-up-for-this-test-alone"
    vault_mount.write("flask", {"key": value, "nested": [{"short": "word"}]})

    assert {value, vault_mount.token} <= watch.secrets
    assert "word" not in watch.secrets


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_run_that_shows_a_secret_fails_and_does_not_show_it_again(
    workers: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests import canaries\npytest_configure = canaries.watch\n"
    )
    # What a worker's program prints, its parent never sees.
    (tmp_path / "test_shows.py").write_text(
        "import subprocess, sys\n"
        "def test_it():\n"
        '    code = \'print("canary-" + "0123-value")\'\n'
        "    subprocess.run([sys.executable, '-c', code], capture_output=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "test_shows.py::test_it: a command: <secret>" in done.stdout
    assert "0123-value" not in done.stdout
