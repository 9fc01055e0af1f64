"""``flask --help`` and the shell's completion build the app and ask nobody for it.

Everybody pays for them, in every project and at every press of the Tab key. All other
commands, those of the app too, find a config that is filled.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import typing as t

import click
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import FlaskGroup

from flask_vault import FlaskVault
from flask_vault.testing.plugin import VaultMount

#: Seconds, on a busy machine. A server that never answers costs 5 s (the read timeout).
AT_ONCE = 4.0

#: A factory with an extension that looks at its config, and with a command.
APP = """\
import sys

import click
from flask import Flask
from flask_vault import FlaskVault, Secret

vault = FlaskVault()


class Database:
    def init_app(self, app):
        uri = app.config.get("SQLALCHEMY_DATABASE_URI")

        if not uri:
            raise RuntimeError("'SQLALCHEMY_DATABASE_URI' must be set.")

        if not uri.startswith("postgresql://"):
            raise RuntimeError("Could not parse SQLAlchemy URL")


def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = {
        "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"},
        "WORKERS": {"ref": "flask#workers", "cast": "int"},
        "SALT": {"ref": "flask#salt", "cast": "bytes"},
        "SQLALCHEMY_DATABASE_URI": {
            "ref": "database",
            "template": "postgresql://{username}:{password}@{host}/shop",
        },
    }
    vault.init_app(app)
    assert app.config["SECRET_KEY"]
    assert isinstance(app.config["SALT"], bytes)
    range(app.config["WORKERS"])
    Database().init_app(app)

    @app.cli.command("db-upgrade")
    @click.argument("words", nargs=-1)
    def db_upgrade(words):
        "Bring the database up to date."
        click.echo(app.config["SQLALCHEMY_DATABASE_URI"])
        click.echo(" ".join(words))

    @app.get("/")
    def index():
        return "index"

    return app
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def silent() -> cabc.Iterator[socket.socket]:
    """A server that accepts and never answers, as one behind a lost route does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def address_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def was_asked(listener: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        listener.accept()[0].close()
        return True

    return False


def flask(
    folder: pathlib.Path, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [pathlib.Path(sys.executable).with_name("flask"), *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def complete(
    folder: pathlib.Path, line: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """What the Tab key asks for at the end of a line."""
    return flask(
        folder,
        _FLASK_COMPLETE="bash_complete",
        COMP_WORDS=line,
        COMP_CWORD=str(line.count(" ")),
        **environ,
    )


# With a server that does not answer, and without an address.


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (("--help",), "db-upgrade"),
        ((), "db-upgrade"),
        (("db-upgrade", "--help"), "Bring the database up to date."),
        (("routes", "--help"), "Show all registered routes"),
        (("vault", "--help"), "backup-key"),
        (("vault", "rotate", "--help"), "--list-backups"),
        (("vault",), "backup-key"),
    ],
)
@pytest.mark.parametrize("address", ["silent", "unset"])
def test_help_answers_at_once_and_asks_nobody(
    address: str,
    arguments: tuple[str, ...],
    shows: str,
    folder: pathlib.Path,
    silent: socket.socket,
) -> None:
    environ = {"VAULT_ADDR": address_of(silent), "VAULT_TOKEN": "x"}
    began = time.monotonic()
    done = flask(folder, *arguments, **(environ if address == "silent" else {}))
    took = time.monotonic() - began

    assert shows in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert took < AT_ONCE
    assert not was_asked(silent)


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("flask d", "plain,db-upgrade"),
        ("flask ", "plain,vault"),
        ("flask db-upgrade --", "plain,--help"),
        ("flask vault st", "plain,status"),
        ("flask vault rotate --li", "plain,--list-backups"),
    ],
)
@pytest.mark.parametrize("address", ["silent", "unset"])
def test_completion_answers_at_once_and_asks_nobody(
    address: str,
    line: str,
    offers: str,
    folder: pathlib.Path,
    silent: socket.socket,
) -> None:
    environ = {"VAULT_ADDR": address_of(silent), "VAULT_TOKEN": "x"}
    began = time.monotonic()
    done = complete(folder, line, **(environ if address == "silent" else {}))
    took = time.monotonic() - began

    assert offers in done.stdout.splitlines()
    assert done.stderr == ""
    assert done.returncode == 0
    assert took < AT_ONCE
    assert not was_asked(silent)


def test_help_of_an_app_whose_config_is_wrong_still_lists_its_commands(
    folder: pathlib.Path,
) -> None:
    """It is for the start that matters to say what is wrong."""
    done = flask(folder, "--help", FLASK_VAULT_ADRR="x", FLASK_VAULT_PREFIX="{x}")
    assert "db-upgrade" in done.stdout
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    "entry",
    [
        "'database#uri'",
        "{'ref': 'database#uri', 'env': 'DATABASE_URL'}",
        "{'ref': 'database#uri', 'default': 'sqlite:///x'}",
        "Secret('database#uri')",
        "Secret('database#uri', default='sqlite:///x')",
    ],
)
def test_help_of_an_app_whose_database_is_one_field(
    entry: str, folder: pathlib.Path, silent: socket.socket
) -> None:
    """The extension parses the address when it is initialized. A placeholder that is
    none hides the app's commands behind a traceback."""
    text = APP.replace('uri.startswith("postgresql://")', '"://" in uri')
    start = text.index('        "SQLALCHEMY_DATABASE_URI": {')
    end = text.index("    vault.init_app(app)")
    entry_of = f'        "SQLALCHEMY_DATABASE_URI": {entry},\n    }}\n'
    (folder / "app.py").write_text(text[:start] + entry_of + text[end:])
    environ = {"VAULT_ADDR": address_of(silent), "DATABASE_URL": "sqlite:///x"}
    done = flask(folder, "--help", **environ)
    assert "db-upgrade" in done.stdout
    assert "Traceback" not in done.stderr


# What is not imported for it.

_MODULES = """\
import json
import sys

from flask.cli import main

before = set(sys.modules)
sys.argv[0] = "flask"

try:
    main()
except SystemExit as done:
    assert done.code == 0, done.code

print()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported(folder: pathlib.Path, *arguments: str, **environ: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _MODULES, *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("db-upgrade", "--help"), ("vault", "--help")],
)
def test_nothing_heavy_is_imported_for_help(
    arguments: tuple[str, ...], folder: pathlib.Path
) -> None:
    modules = imported(folder, *arguments)
    assert "flask_vault.cli" in modules
    heavy = {"hvac", "requests", "urllib3", "cryptography", "ssl", "flask_vault.client"}
    heavy |= {"rich", "flask_vault.state"}
    assert modules & heavy == set()


def test_nothing_heavy_is_imported_by_the_commands_of_an_app_without_us(
    tmp_path: pathlib.Path,
) -> None:
    """The group is listed in every project of the environment."""
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "app = Flask(__name__)\n"
        "app.cli.command('hello')(lambda: print('hello'))\n"
    )
    modules = imported(tmp_path, "hello")
    ours = {name for name in modules if name.startswith("flask_vault")}
    assert modules & {"hvac", "requests", "cryptography"} == set()
    assert "flask_vault.client" not in ours
    assert "flask_vault.settings" not in ours


# What is no question for help.


def database(mount: VaultMount) -> dict[str, str]:
    mount.write("flask", {"secret_key": "s", "workers": 3, "salt": "YQ=="})
    mount.write("database", {"username": "u", "password": "p@/", "host": "db"})
    return {
        "VAULT_ADDR": mount.address,
        "VAULT_TOKEN": mount.token,
        "FLASK_VAULT_MOUNT": mount.name,
    }


@pytest.mark.parametrize(
    "words", [(), ("one",), ("--", "--help"), ("one", "--", "-h", "--help")]
)
def test_the_apps_own_commands_find_a_filled_config(
    words: tuple[str, ...], folder: pathlib.Path, vault_mount: VaultMount
) -> None:
    done = flask(folder, "db-upgrade", *words, **database(vault_mount))
    uri, given = done.stdout.splitlines()
    assert uri == "postgresql://u:p%40%2F@db/shop"
    assert given == " ".join(word for word in words if word != "--")
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_apps_own_commands_need_vault_and_say_so_in_one_line(
    folder: pathlib.Path,
) -> None:
    for arguments in (("db-upgrade",), ("routes",), ("run", "--port", "0")):
        done = flask(
            folder,
            *arguments,
            VAULT_ADDR="http://127.0.0.1:1",
            VAULT_TOKEN="x",
            FLASK_VAULT_STARTUP_TIMEOUT="0",
        )
        assert done.returncode == 4
        assert "SQLALCHEMY_DATABASE_URI: Vault at http://127.0.0.1:1" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1

    done = flask(folder, "db-upgrade")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: VAULT_ADDR is unset: ")


def test_an_app_can_still_catch_the_error_by_its_type(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_vault import FlaskVault, VaultUnavailableError\n"
        "app = Flask(__name__)\n"
        "app.config['VAULT_SECRETS'] = {'KEY': 'a#b'}\n"
        "try:\n"
        "    FlaskVault(app)\n"
        "except VaultUnavailableError:\n"
        "    app.config['KEY'] = 'caught'\n"
        "app.cli.command('show')(lambda: print(app.config['KEY']))\n"
    )
    done = flask(tmp_path, "show", VAULT_ADDR="http://127.0.0.1:1", VAULT_TOKEN="x")
    assert done.stdout == "caught\n"
    assert done.returncode == 0


def make_app(mount: VaultMount) -> Flask:
    app = Flask("shop")
    app.config.from_mapping(
        mount.config(VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"})
    )
    FlaskVault(app)

    @app.cli.command("show")
    def show() -> None:
        click.echo(app.config["SECRET_KEY"])

    return app


@pytest.mark.parametrize("argv", [["pytest"], ["pytest", "--help"]])
def test_a_command_that_a_test_runs_is_no_question_for_help(
    argv: list[str], vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line of the process is that of pytest, not of ``flask``."""
    vault_mount.write("flask", {"secret_key": "from vault"})
    monkeypatch.setattr(sys, "argv", argv)
    group = FlaskGroup(create_app=lambda: make_app(vault_mount))
    done = CliRunner().invoke(group, ["show"])
    assert done.stdout == "from vault\n"


@pytest.mark.parametrize(
    "kind", [click.group(invoke_without_command=True), click.command()]
)
def test_a_program_that_serves_when_it_is_given_no_command_gets_its_secrets(
    kind: cabc.Callable[[cabc.Callable[[], None]], click.Command],
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would sign its sessions with a placeholder that everybody knows."""
    vault_mount.write("flask", {"secret_key": "from vault"})
    monkeypatch.setattr(sys, "argv", ["manage.py"])

    def manage() -> None:
        click.echo(make_app(vault_mount).config["SECRET_KEY"])

    done = CliRunner().invoke(kind(manage), [], prog_name="manage.py")
    assert done.stdout == "from vault\n"


def test_an_app_that_was_built_for_help_and_serves_is_loaded_before(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("flask", {"secret_key": "from vault"})
    monkeypatch.setenv("_FLASK_COMPLETE", "bash_complete")
    monkeypatch.setattr(sys, "argv", ["flask"])
    app = make_app(vault_mount)
    assert app.config["SECRET_KEY"] == "unset"

    @app.get("/")
    def index() -> str:
        return t.cast(str, app.config["SECRET_KEY"])

    monkeypatch.delenv("_FLASK_COMPLETE")
    assert app.test_client().get("/").text == "from vault"
