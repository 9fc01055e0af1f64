"""``flask vault dev``: an app on a server of its own, that leaves nothing behind."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import typing as t
import urllib.request

import pytest

from flask_vault import dev as dev_module
from flask_vault.testing.ports import lease_ports

CANARY = "canary-a40b"

#: A factory that needs its secrets at once, and that is configured for production.
APP = """\
import os

import click
from flask import Flask
from flask_vault import FlaskVault, get_secret

vault = FlaskVault()


def create_app():
    app = Flask(__name__)
    app.config.from_mapping(
        VAULT_ADDR=os.environ.get("CANARY"),
        VAULT_TOKEN="the token of production",
        VAULT_NAMESPACE="production",
        VAULT_CACERT="/no/such/file.pem",
        VAULT_PREFIX="shop/{environment}",
        VAULT_BACKUP_KEYS=["no key"],
        VAULT_BACKUP_TRANSIT_KEY="no-such-engine/key",
        VAULT_SECRETS={
            "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"},
            "STRIPE_API_KEY": {"ref": "stripe#api_key", "env": "STRIPE_API_KEY"},
            "SQLALCHEMY_DATABASE_URI": {
                "ref": "database",
                "template": "postgresql://{username}:{password}@{host}/shop",
            },
        },
    )
    app.config.from_prefixed_env()
    vault.init_app(app)

    if not app.config["SQLALCHEMY_DATABASE_URI"]:
        raise RuntimeError("'SQLALCHEMY_DATABASE_URI' must be set.")

    @app.cli.command("show")
    def show():
        for key in ("SECRET_KEY", "STRIPE_API_KEY", "SQLALCHEMY_DATABASE_URI"):
            click.echo(f"{key}={app.config[key]}")

    @app.get("/")
    def index():
        return app.config["SECRET_KEY"]

    return app


if __name__ == "__main__":
    print("key", len(create_app().config["SECRET_KEY"]), flush=True)
    create_app().run(port=int(os.environ["PORT"]))
"""

#: The smallest app there is.
SMALL = """\
from flask import Flask
from flask_vault import FlaskVault
app = Flask(__name__)
app.config.from_prefixed_env()
app.config["VAULT_SECRETS"] = {SECRETS}
FlaskVault(app)
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where the app is, with a folder for all that is temporary."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.fixture
def production() -> cabc.Iterator[socket.socket]:
    """Must never be asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def environ_for(folder: pathlib.Path, **environ: str) -> dict[str, str]:
    """The temporary files of a command and all below it go into its own folder."""
    return {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        # The only other way to a server, for all that ask by themselves.
        "CANARY": "http://127.0.0.1:9",
        **environ,
    }


def dev(
    folder: pathlib.Path, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "flask", "vault", "dev", *arguments],
        cwd=folder,
        env=environ_for(folder, **environ),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert_nothing_is_left(folder, done.stdout)
    return done


def assert_nothing_is_left(folder: pathlib.Path, printed: str = "") -> None:
    """Neither a file nor a server."""
    wait_until(lambda: not list((folder / "tmp").iterdir()))

    for port in re.findall(r"The server is http://127\.0\.0\.1:(\d+)", printed):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def wait_until(condition: cabc.Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout

    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.01)


def python(code: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", code)


FLASK = ("--", sys.executable, "-m", "flask")


# What the command finds.


def test_the_command_finds_an_app_that_starts(
    folder: pathlib.Path, production: socket.socket
) -> None:
    """Though its factory can reach no Vault when ``dev`` begins, and though its config
    says where production is."""
    address = f"http://127.0.0.1:{production.getsockname()[1]}"
    done = dev(
        folder,
        *(*FLASK, "show"),
        CANARY=address,
        VAULT_ADDR=address,
        BAO_ADDR=address,
        FLASK_VAULT_ADDR=address,
        VAULT_TOKEN=CANARY,
        FLASK_VAULT_ENABLED="false",
        STRIPE_API_KEY="from the environment",
    )
    assert done.returncode == 0
    assert done.stderr == ""
    shown = dict(line.split("=") for line in done.stdout.splitlines()[-3:])
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", shown["SECRET_KEY"])
    assert shown["STRIPE_API_KEY"] == "from the environment"
    assert shown["SQLALCHEMY_DATABASE_URI"] == (
        "postgresql://dev-database-username:dev-database-password"
        "@dev-database-host/shop"
    )

    with pytest.raises(BlockingIOError):
        production.accept()


def test_it_says_what_was_made_and_how_to_look_at_it(folder: pathlib.Path) -> None:
    code = (
        "import os, pathlib, stat, json\n"
        "file = pathlib.Path(os.environ['_FLASK_VAULT_DEV_ENV'])\n"
        "print(json.dumps({'env': file.read_text(), 'file': str(file), 'modes': [\n"
        "    stat.S_IMODE(path.stat().st_mode)\n"
        "    for path in (file.parent, *file.parent.iterdir()) if path.is_file()\n"
        "]}))\n"
    )
    done = dev(folder, *python(code))
    said = json.loads(done.stdout.splitlines()[-1])

    assert re.search(r"^flask#secret_key +created +SECRET_KEY$", done.stdout, re.M)
    assert re.search(
        r"^database#host +created +SQLALCHEMY_DATABASE_URI$", done.stdout, re.M
    )
    assert f"    . {said['file']}\n" in done.stdout
    assert re.search(r"^export VAULT_ADDR=http://127\.0\.0\.1:\d+$", said["env"], re.M)
    assert re.search(r"^export VAULT_TOKEN=\S+$", said["env"], re.M)
    assert re.search(r"^export VAULT_ENVIRONMENT=development$", said["env"], re.M)
    assert set(said["modes"]) == {0o600}

    # The token is in the file, and not on the screen.
    (token,) = re.findall(r"VAULT_TOKEN=(\S+)", said["env"])
    assert not any(token in line for line in done.stdout.splitlines()[:-1])


def test_the_other_terminal_is_an_operators(folder: pathlib.Path) -> None:
    """What it prints works when it is pasted, in a shell that knows nothing else."""
    flask = f"{shlex.quote(sys.executable)} -m flask"
    script = (
        'env -i PATH="$PATH" sh -c \'. $0; '
        f"{flask} vault status && {flask} vault rotate --secret SECRET_KEY && "
        f"{flask} vault rotate --list-backups' "
        '"$_FLASK_VAULT_DEV_ENV"'
    )
    done = dev(folder, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^SECRET_KEY +flask#secret_key +vault +1 ", done.stdout, re.M)
    assert "flask: secret_key rotated, version 2, backup flask_" in done.stdout
    assert "shop/development/flask" in done.stdout


def test_the_app_may_read_its_secrets_and_no_more(folder: pathlib.Path) -> None:
    code = (
        "from app import create_app\n"
        "client = create_app().extensions['vault'].client\n"
        "print(client.get_secret('flask#secret_key') is not None)\n"
        "for call in (\n"
        "    lambda: client.get_secret('another', use_cache=False),\n"
        "    lambda: client.set_secret('flask', {'secret_key': 'x'}),\n"
        "    lambda: client.list_secrets(),\n"
        "):\n"
        "    try:\n"
        "        print(call())\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
    )
    done = dev(folder, *python(code))
    assert done.stdout.splitlines()[-4:] == ["True", *["VaultPermissionError"] * 3]


def test_the_command_finds_this_server_and_no_other(folder: pathlib.Path) -> None:
    """Nor does it find the operator's token: only who asks for it in another terminal
    is one."""
    code = (
        "import os, json\n"
        "print(json.dumps({k: v for k, v in os.environ.items()\n"
        "    if k.startswith(('VAULT_', 'BAO_', 'FLASK_'))}))\n"
    )
    others = dict.fromkeys(
        (
            *("VAULT_ADDR", "BAO_ADDR", "VAULT_TOKEN", "BAO_TOKEN", "VAULT_NAMESPACE"),
            *("BAO_NAMESPACE", "VAULT_CACERT", "BAO_CACERT", "VAULT_ROLE_ID"),
            "VAULT_SECRET_ID",
        ),
        CANARY,
    )
    done = dev(folder, *python(code), VAULT_ENVIRONMENT="staging", **others)
    found = json.loads(done.stdout.splitlines()[-1])
    assert CANARY not in found.values()
    assert found.pop("VAULT_ENVIRONMENT") == "staging"
    assert {name for name in found if name.startswith(("VAULT_", "BAO_"))} == {
        *("VAULT_ADDR", "VAULT_ROLE_ID", "VAULT_SECRET_ID")
    }
    # Or app.run() in a program that it runs does nothing: "Ignoring a call to ...".
    assert "FLASK_RUN_FROM_CLI" not in found


def test_a_program_that_runs_the_app_itself(folder: pathlib.Path) -> None:
    """``python app.py``, with ``app.run()`` at its end."""
    port, lease = lease_ports()

    with lease, started(folder, "--", sys.executable, "app.py", PORT=str(port)) as run:
        run.read_until("key 43")
        run.wait_until_it_serves(port)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(20) == 128 + signal.SIGTERM

    assert_nothing_is_left(folder)


def test_without_a_command_it_is_flask_run(folder: pathlib.Path) -> None:
    port, lease = lease_ports()

    with lease, started(folder, FLASK_RUN_PORT=str(port)) as run:
        key = run.wait_until_it_serves(port)
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.process.wait(20) in (0, 130)

    assert_nothing_is_left(folder)


def test_a_kv_version_in_the_config_is_of_another_server(folder: pathlib.Path) -> None:
    done = dev(folder, *FLASK, "show", FLASK_VAULT_KV_VERSION="1")
    assert done.returncode == 0, done.stderr
    assert "SECRET_KEY=" in done.stdout


# Values to begin with.


def test_seeds_are_written_before_the_app_starts(folder: pathlib.Path) -> None:
    (folder / "seed.json").write_text(
        json.dumps(
            {
                "stripe": {"api_key": "sk_test"},
                "database": {"username": "u", "password": "p", "host": "h"},
            }
        )
    )
    done = dev(folder, "--seed", "seed.json", *FLASK, "show")
    assert "STRIPE_API_KEY=sk_test" in done.stdout
    assert "SQLALCHEMY_DATABASE_URI=postgresql://u:p@h/shop" in done.stdout


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ({"stripo": {"api_key": "sk_test"}}, "stripo"),
        ({"stripe": {"api_kee": "sk_test"}}, "stripe#api_kee"),
    ],
)
def test_a_seed_for_what_the_app_does_not_have_is_a_mistake(
    seed: object, says: str, folder: pathlib.Path
) -> None:
    """The app would get a made-up value, and its role could not read the seed."""
    (folder / "seed.json").write_text(json.dumps(seed))
    done = dev(folder, "--seed", "seed.json", "--", "echo", "started")
    assert done.returncode == 2
    assert says in done.stderr
    assert "--seed" in done.stderr
    assert "started" not in done.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"stripe": "sk_test"}'])
def test_a_seed_file_that_is_none(text: str, folder: pathlib.Path) -> None:
    (folder / "seed.json").write_text(text)
    done = dev(folder, "--seed", "seed.json", "--", "echo", "started")
    assert done.returncode == 2
    assert "--seed" in done.stderr
    assert "JSON" in done.stderr
    assert "started" not in done.stdout


def test_what_only_a_person_knows_is_named_with_the_cure(
    folder: pathlib.Path,
) -> None:
    """A number cannot be made up."""
    secrets = {"WORKERS": {"ref": "app#workers", "cast": "int"}}
    (folder / "app.py").write_text(SMALL.replace("{SECRETS}", repr(secrets)))
    done = dev(folder, "--", "echo", "started")
    assert re.search(r"^app#workers +missing +WORKERS$", done.stdout, re.M)
    assert "--seed" in done.stdout + done.stderr


def test_entries_of_every_kind(folder: pathlib.Path) -> None:
    secrets = {
        "WHOLE": {"ref": "whole", "cast": "json"},
        "ABSOLUTE": "/team-kv/deep/path#key",
        "OPTIONAL": {"ref": "optional#x", "default": "d"},
        "MADE": {"ref": "made#x", "rotate": {"generator": "fernet"}},
        "NAMED": {"ref": "made", "cast": "json", "rotate": {"field": "y"}},
    }
    (folder / "app.py").write_text(SMALL.replace("{SECRETS}", repr(secrets)))
    (folder / "seed.json").write_text('{"whole": {"a": 1}}')
    done = dev(folder, "--seed", "seed.json", *FLASK, "vault", "status")
    table = done.stdout.split("_FLASK")[0]
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ABSOLUTE +/team-kv/deep/path#key +vault +1 ", table, re.M)
    assert re.search(r"^OPTIONAL +optional#x +default ", table, re.M)
    assert re.search(r"^WHOLE +whole +vault +1 ", table, re.M)
    assert re.search(r"^MADE +made#x +vault +1 ", table, re.M)


def test_an_app_that_declares_nothing(folder: pathlib.Path) -> None:
    (folder / "app.py").write_text(SMALL.replace("{SECRETS}", "{}"))
    done = dev(folder, "--", "echo", "started")
    assert done.returncode == 0
    assert "started" in done.stdout


# Its end.


def test_the_exit_code_is_the_commands(folder: pathlib.Path) -> None:
    assert dev(folder, "--", "sh", "-c", "exit 77").returncode == 77


@pytest.mark.parametrize("separator", [("--",), ()])
def test_options_after_the_command_are_the_commands(
    separator: tuple[str, ...], folder: pathlib.Path
) -> None:
    done = dev(folder, *separator, "echo", "--seed", "x", "--help", "--", "y")
    assert done.stdout.endswith("\n--seed x --help -- y\n")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("no-such-program", "No such file"),
        ("./app.py", "Permission denied"),
    ],
)
def test_a_command_that_cannot_be_run(
    command: str, says: str, folder: pathlib.Path
) -> None:
    done = dev(folder, "--", command)
    assert done.returncode == 2
    assert f"The command {command!r} cannot be run ({says}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_option_that_is_none_is_no_command(folder: pathlib.Path) -> None:
    """``--port`` belongs to ``flask run``, and a person will try it here."""
    done = dev(folder, "--port", "5001")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--port" in done.stderr
    assert "The server is" not in done.stdout


def test_an_app_that_has_no_flask_vault(folder: pathlib.Path) -> None:
    (folder / "app.py").write_text("from flask import Flask\napp = Flask('shop')\n")
    done = dev(folder, "--", "echo", "started")
    assert done.returncode == 2
    assert "The app 'shop' has no FlaskVault" in done.stderr
    assert "started" not in done.stdout


def test_an_app_whose_config_is_wrong(folder: pathlib.Path) -> None:
    secrets = {"KEY": {"ref": "a#b", "rotat": "token"}}
    (folder / "app.py").write_text(SMALL.replace("{SECRETS}", repr(secrets)))
    done = dev(folder, "--", "echo", "started")
    assert done.returncode == 2
    assert "VAULT_SECRETS['KEY']" in done.stderr
    assert "did you mean 'rotate'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "started" not in done.stdout


def test_where_there_is_no_server_to_run(folder: pathlib.Path) -> None:
    done = dev(folder, "--", "echo", FLASK_VAULT_SERVER_BINARY="no-such-bao")
    assert done.returncode == 2
    assert "FLASK_VAULT_SERVER_BINARY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Run:
    """A ``flask vault dev`` that runs, in a process group of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""

    def read_until(self, word: str) -> str:
        output = t.cast("t.TextIO", self.process.stdout)

        while word not in self.printed:
            line = output.readline()
            assert line, f"It ended: {self.printed}"
            self.printed += line

        return self.printed

    def wait_until_it_serves(self, port: int) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        answers: list[str] = []

        def has_answered() -> bool:
            assert self.process.poll() is None, "It ended."

            with contextlib.suppress(OSError):
                with opener.open(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answers.append(answer.read().decode())

            return bool(answers)

        wait_until(has_answered)
        return answers[0]


@contextlib.contextmanager
def started(
    folder: pathlib.Path, *arguments: str, **environ: str
) -> cabc.Iterator[Run]:
    with subprocess.Popen(
        [sys.executable, "-m", "flask", "vault", "dev", *arguments],
        cwd=folder,
        env=environ_for(folder, **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Run(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


READY = "print('ready', flush=True); import time; time.sleep(60)"


#: Says which signal it got, and leaves in its own way.
TALKS = """\
import signal, time
def leave(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    raise SystemExit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, leave)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on(number: signal.Signals, folder: pathlib.Path) -> None:
    """A process manager knows our process only. What the signal means, and how to end,
    is for the command to decide."""
    with started(folder, *python(TALKS)) as run:
        printed = run.read_until("ready")
        run.process.send_signal(number)
        run.read_until(f"got {number.name}")
        assert run.process.wait(20) == 7

    assert_nothing_is_left(folder, printed)


def test_ctrl_c_reaches_both_and_the_command_decides(folder: pathlib.Path) -> None:
    """A terminal sends it to the whole group."""
    with started(folder, *python(TALKS)) as run:
        printed = run.read_until("ready")
        os.killpg(run.process.pid, signal.SIGINT)
        run.read_until("got SIGINT")
        assert run.process.wait(20) == 7

    assert_nothing_is_left(folder, printed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_command_is_started_is_not_lost(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too late to end this process at once, too early for the other one to hear it."""
    real = subprocess.Popen

    def start(*args: t.Any, **kwargs: t.Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr("flask_vault.dev.subprocess.Popen", start)
    command = (sys.executable, "-c", "import time; time.sleep(5)")
    assert dev_module._run(command, dict(os.environ)) == 128 + number


def test_a_command_that_a_signal_ends_gives_the_shells_code(
    folder: pathlib.Path,
) -> None:
    done = dev(folder, *python("import os; os.kill(os.getpid(), 9)"))
    assert done.returncode == 128 + 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_command_runs_leaves_nothing_either(
    number: signal.Signals, folder: pathlib.Path
) -> None:
    """The folder is there before the server is, and holds tokens."""
    with started(folder, *python(READY)) as run:
        wait_until(lambda: bool(list((folder / "tmp").glob("flask-vault-dev-*"))))
        os.killpg(run.process.pid, number)
        assert run.process.wait(20) != 0

    assert "ready" not in run.printed
    assert_nothing_is_left(folder)


def test_killed_it_leaves_no_server(folder: pathlib.Path) -> None:
    with started(folder, *python(READY)) as run:
        printed = run.read_until("ready")
        run.process.kill()
        run.process.wait(20)
        (port,) = re.findall(r"The server is http://127\.0\.0\.1:(\d+)", printed)

        def is_gone() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", int(port))) != 0

        wait_until(is_gone)


def test_an_app_that_outlives_it_says_that_it_is_gone(folder: pathlib.Path) -> None:
    """The address of another server is not taken instead."""
    file = folder / "settings.json"
    file.write_text("{}")

    for gone in (str(file), str(folder / "missing.json")):
        done = subprocess.run(
            [sys.executable, "-m", "flask", "show"],
            cwd=folder,
            env=environ_for(folder, _FLASK_VAULT_DEV=gone),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 2
        assert "'flask vault dev' does not run any more" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_settings_of_dev_lead_to_no_other_host(folder: pathlib.Path) -> None:
    file = folder / "settings.json"
    file.write_text('{"VAULT_ADDR": "http://192.0.2.1:8200"}')
    done = subprocess.run(
        [sys.executable, "-m", "flask", "show"],
        cwd=folder,
        env=environ_for(folder, _FLASK_VAULT_DEV=str(file)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "_FLASK_VAULT_DEV" in done.stderr
