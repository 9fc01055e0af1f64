"""The commands on a terminal of 80 columns, with rich and without it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios

import click
import pytest

from flask_vault.cli import vault_group
from flask_vault.testing.plugin import VaultMount

COLUMNS = 80

APP = """\
from flask import Flask
from flask_vault import FlaskVault

app = Flask(__name__)
app.config.from_prefixed_env()
app.config["VAULT_SECRETS"] = {
    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"},
    "PAYMENT_PROVIDER_WEBHOOK_SECRET": "shop/production/eu/payment#webhook_secret",
    "MAIL_PASSWORD": {"ref": "mail#password", "default": "made-up"},
}
FlaskVault(app)
"""

#: ``flask``, where rich cannot be imported.
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; import flask.cli as c; c.main()"

#: Commands that print no facts.
NO_FACTS = {"backup-key", "dev"}

BOTH = pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])


@pytest.fixture
def folder(
    tmp_path: pathlib.Path, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    (tmp_path / "app.py").write_text(APP)
    vault_mount.write("flask", {"secret_key": "made-up"})
    vault_mount.write("shop/production/eu/payment", {"webhook_secret": "made-up"})
    monkeypatch.setenv("VAULT_ADDR", vault_mount.address)
    monkeypatch.setenv("VAULT_TOKEN", vault_mount.token)
    monkeypatch.setenv("FLASK_VAULT_MOUNT", vault_mount.name)
    monkeypatch.setenv("TERM", "xterm-256color")

    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    return tmp_path


class Screen:
    """A ``flask vault`` command on a terminal."""

    def __init__(
        self, folder: pathlib.Path, *arguments: str, rich: bool = True
    ) -> None:
        if rich:
            pytest.importorskip("rich")

        self._ours, theirs = pty.openpty()
        size = struct.pack("HHHH", 24, COLUMNS, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        program = ["-m", "flask"] if rich else ["-c", WITHOUT_RICH]
        self.process = subprocess.Popen(
            [sys.executable, *program, "vault", *arguments],
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(20)
        os.close(self._ours)

    def wait_for(self, pattern: str) -> None:
        while not re.search(pattern, self.text):
            assert self._read(), self.text

    def wait_for_end(self) -> int:
        while self._read():
            pass

        return self.process.wait(20)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._ours, 65_536).decode()
        except OSError:  # Linux's way to say that nobody is on the other side.
            return False

        self.shown += chunk.replace("\r\n", "\n")
        return bool(chunk)


def shown(folder: pathlib.Path, *arguments: str, rich: bool = True) -> Screen:
    with Screen(folder, *arguments, rich=rich) as screen:
        screen.wait_for_end()
        return screen


def without_ages(text: str) -> str:
    return re.sub(r"\d+ s\b", "N s", text)


# --- tables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("doctor",), ("init",), ("rotate", "--all", "--dry-run")],
    ids=" ".join,
)
def test_rich_adds_colours_and_changes_no_word(
    arguments: tuple[str, ...], folder: pathlib.Path
) -> None:
    coloured, plain = (shown(folder, *arguments, rich=rich) for rich in (True, False))
    lines = coloured.text.splitlines()

    assert without_ages(coloured.text) == without_ages(plain.text)
    assert "\x1b[" in coloured.shown
    assert max(map(len, lines)) <= COLUMNS
    # A table that is wrapped by the terminal has its columns anywhere.
    assert lines == [line.rstrip() for line in lines]


def test_a_long_reference_is_folded_in_its_column(folder: pathlib.Path) -> None:
    lines = shown(folder, "status").text.splitlines()
    start = lines[0].index("reference")
    (at,) = (i for i, line in enumerate(lines) if line.startswith("PAYMENT_"))
    assert lines[at + 1][start:].startswith("#webhook_secret")


@BOTH
def test_no_color(
    rich: bool, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = shown(folder, "status", rich=rich)
    assert "MAIL_PASSWORD: There is no document" in screen.shown
    assert "\x1b" not in screen.shown


def test_a_pipe_gets_neither_colours_nor_folds(folder: pathlib.Path) -> None:
    code = (
        "import sys, flask.cli as c\n"
        "try: c.main()\n"
        "finally: print('rich' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "vault", "status"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert "shop/production/eu/payment#webhook_secret" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "False"


# --- JSON --------------------------------------------------------------------------


def commands(
    group: click.Group, *path: str
) -> cabc.Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, id=n) for n, c in commands(vault_group) if n not in NO_FACTS],
)
def test_each_command_that_prints_facts_has_json(command: click.Command) -> None:
    assert "--json" in {name for option in command.params for name in option.opts}


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("get", "SECRET_KEY"), {"version": 1, "fields": {"secret_key": None}}),
        (
            ("get", "SECRET_KEY", "--reveal"),
            {"version": 1, "fields": {"secret_key": "made-up"}},
        ),
        (("set", "stripe"), {"version": 1, "fields": ["api_key"]}),
        (("list",), ["flask", "shop/"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_facts_in_json(
    arguments: tuple[str, ...], facts: object, folder: pathlib.Path
) -> None:
    done = flask(folder, *arguments, "--json", input='{"api_key": "made-up"}')
    found = json.loads(done.stdout)

    if isinstance(found, dict):
        assert found.pop("path").endswith(("/flask", "/stripe"))

    assert found == facts


def test_a_restore_in_json(folder: pathlib.Path) -> None:
    key = flask(folder, "backup-key").stdout.strip()
    environ = {**os.environ, "FLASK_VAULT_BACKUP_KEYS": key}
    (rotated,) = json.loads(
        flask(folder, "rotate", "--all", "--json", env=environ).stdout
    )
    restore = ("rotate", "--restore", rotated["backup"], "--json")
    (planned,) = json.loads(
        flask(folder, *restore, "--dry-run", env=environ).stdout
    ).values()
    (done,) = json.loads(flask(folder, *restore, env=environ).stdout).values()

    assert planned["fields"] == done["fields"] == ["secret_key"]
    assert planned["from_version"] == 1
    assert done["version"] == 3
    assert done["backup"] != rotated["backup"]


def flask(
    folder: pathlib.Path,
    *arguments: str,
    input: str | None = None,
    env: cabc.Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "vault", *arguments],
        cwd=folder,
        env=env,
        input=input,
        capture_output=True,
        text=True,
    )


# --- completion --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("get ", {"SECRET_KEY", "MAIL_PASSWORD", "PAYMENT_PROVIDER_WEBHOOK_SECRET"}),
        ("set M", {"MAIL_PASSWORD"}),
        ("rotate --secret ", {"SECRET_KEY"}),
        ("audit --secret S", {"SECRET_KEY"}),
        ("rotate --restore flask_2", {"flask_20261124T114142Z_1fdcebd7.json"}),
        ("status --w", {"--watch"}),
    ],
)
def test_the_tab_key_knows_keys_and_backups_and_asks_nobody(
    line: str, offers: set[str], folder: pathlib.Path
) -> None:
    backups = folder / "instance" / "vault-backups"
    backups.mkdir(parents=True)
    (backups / "flask_20261124T114142Z_1fdcebd7.json").touch()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        done = subprocess.run(
            [pathlib.Path(sys.executable).with_name("flask")],
            cwd=folder,
            env={
                **os.environ,
                "VAULT_ADDR": f"http://127.0.0.1:{listener.getsockname()[1]}",
                "_FLASK_COMPLETE": "bash_complete",
                "COMP_WORDS": f"flask vault {line}",
                "COMP_CWORD": str(line.count(" ") + 2),
            },
            capture_output=True,
            text=True,
        )

        with contextlib.suppress(BlockingIOError):
            pytest.fail(f"asked by {listener.accept()}")

    assert {word.partition(",")[2] for word in done.stdout.split()} == offers
    assert done.stderr == ""


# --- watch -------------------------------------------------------------------------


@BOTH
def test_a_watch_redraws_what_has_changed_until_ctrl_c(
    rich: bool, folder: pathlib.Path, vault_mount: VaultMount
) -> None:
    with Screen(folder, "status", "--watch", "--interval", "1", rich=rich) as screen:
        screen.wait_for(r"SECRET_KEY +flask#secret_key +vault +1 ")
        vault_mount.write("flask", {"secret_key": "another"})
        screen.wait_for(r"SECRET_KEY +flask#secret_key +vault +2 ")
        os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.wait_for_end() == 0

    _, *looks = screen.shown.split("\x1b[H\x1b[2J")
    assert len(looks) > 1
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+\d{4}, every 1 s\.", looks[0])
    assert "Traceback" not in screen.text
    assert "Aborted" not in screen.text


def test_a_watch_tells_of_a_path_that_fails_and_of_its_recovery(
    folder: pathlib.Path, vault_mount: VaultMount
) -> None:
    with Screen(folder, "status", "--watch", "--interval", "1") as screen:
        screen.wait_for("Ctrl-C ends it")
        vault_mount.write("flask", {"other": "made-up"})
        screen.wait_for(r"\nSECRET_KEY: ")
        vault_mount.write("flask", {"secret_key": "made-up"})
        screen.wait_for(r"SECRET_KEY +flask#secret_key +vault +3 ")


def test_a_watch_waits_for_a_vault_that_is_not_there(
    folder: pathlib.Path, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    monkeypatch.setenv("VAULT_ADDR", f"http://127.0.0.1:{port}")

    with Screen(folder, "status", "--watch", "--interval", "1") as screen:
        screen.wait_for(r"SECRET_KEY[^\n]* unset[\s\S]*SECRET_KEY[^\n]* unset")
        os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.wait_for_end() == 0


def test_without_a_terminal_each_look_comes_below_the_one_before(
    folder: pathlib.Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flask", "vault", "status", "--watch", "--interval=1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = 0
        text = ""

        while looks < 2:
            text += (line := process.stdout.readline())
            looks += "every 1 s" in line

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

    assert "\x1b" not in text
    assert text.splitlines()[1].startswith("key ")


def test_a_watch_is_not_for_programs(folder: pathlib.Path) -> None:
    for arguments in (("--watch", "--json"), ("--interval", "3")):
        assert flask(folder, "status", *arguments).returncode == 2
