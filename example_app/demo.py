"""Runs the example on a server of its own, and says what to try. See README.md.

Ctrl-C ends it, and everything that it has started.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing as t

HOST: t.Final = "127.0.0.1"
PORT: t.Final = 8000

APP: t.Final = pathlib.Path(__file__).resolve().parent
FLASK: t.Final = pathlib.Path(sys.executable).with_name("flask")

#: Seconds that the processes have to end when asked.
GRACE: t.Final = 15

#: Run by "flask vault dev" with a file and the server's command: tells us the process
#: id of the server and where the operator's environment is. The app logs in with an
#: AppRole, so it has no use for the operator's token.
HAND_OVER: t.Final = (
    'echo "$$ $_FLASK_VAULT_DEV_ENV" >"$0" && unset VAULT_TOKEN && exec "$@"'
)

TEXT: t.Final = """
The app answers at http://{host}:{port}/ with secrets from a real server.
Log in as "demo" with the password "demo", and keep a note.

Three things to try. Paste them into another terminal, from any directory.

1. Look at the health, as a load balancer does: no secret is shown.

    {look}

2. Rotate the session key. The old one goes to an encrypted backup.

    {rotate}

   {rotated}

3. Restore that backup.

    {restore}

   {restored}

The API key is read with get_secret(), so a rotated one is in use within 5 seconds,
by the same processes: see example_app/README.md.

Ctrl-C ends the app and the server, and removes their files.
"""

RELOADED: t.Final = """\
kill -HUP has gunicorn start new workers, since this version of Flask-Vault fills
   app.config at the start of a process. Reload the page: you have to log in again."""

RELOADED_BACK: t.Final = """\
The session that you had before the rotation is good again, unless you have logged
   in meanwhile. A restore is backed up too: the same command once more undoes it."""

NOT_RELOADED: t.Final = """\
This version of Flask-Vault fills app.config at the start of a process, and 'flask
   run' cannot start another one. So the new key is in Vault, and the app signs with
   the old one until it ends. With gunicorn you would see the change."""

NOT_RELOADED_BACK: t.Final = """\
A restore is backed up too: the same command once more undoes it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help=f"default: {PORT} if it is free")
    port = parser.parse_args().port or find_port()
    asked: list[int] = []

    # A flag, and no exception, which could come between a start and its clean-up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))

    # All temporary files are made in here, also those of the processes that are killed.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="notes-"))

    try:
        process = start(folder, port)

        try:
            announced = False

            while not asked and process.poll() is None:
                if not announced and is_ready(port):
                    print(instructions(folder, port), flush=True)
                    announced = True

                time.sleep(0.1)
        finally:
            stop(process)
    finally:
        remove(folder)

    if asked:
        return 0

    code = process.returncode
    return code if code >= 0 else 128 - code


def find_port() -> int:
    """The usual port, or another one when somebody has that."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            # As the server does: connections that ended lately do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

            try:
                probe.bind((HOST, port))
            except OSError:
                continue

            return int(probe.getsockname()[1])

    raise SystemExit(f"No port is free on {HOST}.")


def has_gunicorn() -> bool:
    return importlib.util.find_spec("gunicorn") is not None


def start(folder: pathlib.Path, port: int) -> subprocess.Popen[bytes]:
    """Start a Vault, what the app needs in it, and the app."""
    command = [sys.executable, "-m"]

    if has_gunicorn():
        command += ["gunicorn", "--config", str(APP / "gunicorn_conf.py")]
        command += ["--bind", f"{HOST}:{port}", f"{APP.name}:create_app()"]
    else:
        print(
            "Gunicorn is not installed, so the app runs under 'flask run': one process,"
            " and no new workers after a rotation."
        )
        command += ["flask", "run", "--host", HOST, "--port", str(port)]

    hand_over = ["sh", "-c", HAND_OVER, str(folder / "handed-over")]
    return subprocess.Popen(
        [FLASK, "--app", APP, "vault", "dev", "--", *hand_over, *command],
        cwd=APP.parent,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "FLASK_DATABASE": str(folder / "notes.sqlite3"),
            # The versions and ages of the secrets are nothing to show to everybody.
            "FLASK_VAULT_HEALTH_DETAILS": "always",
        },
        # A Ctrl-C is for this process alone, which then ends them in their order.
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End all that was started; the server of Vault ends with its parent."""
    if process.poll() is None:
        process.terminate()

        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    if process.returncode < 0:
        # It was killed, so it has ended nobody.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def remove(folder: pathlib.Path) -> None:
    """Remove the folder, in which a process that was just killed may still write."""
    deadline = time.monotonic() + GRACE

    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def is_ready(port: int) -> bool:
    """Whether the app answers, and all its secrets are Vault's."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)

    try:
        connection.request("GET", "/vault/health")
        health = json.load(connection.getresponse())
        sources = [secret["source"] for secret in health["secrets"].values()]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False
    finally:
        connection.close()

    return health["status"] == "pass" and set(sources) == {"vault"}


def instructions(folder: pathlib.Path, port: int) -> str:
    """What to try, with the paths and process ids of this run."""
    pid, _, environment = (folder / "handed-over").read_text().strip().partition(" ")
    python, flask = shlex.quote(sys.executable), shlex.quote(str(FLASK))
    # In a subshell: a shell that kept the environment would look for this run's server
    # when it is long gone.
    operator = f"(. {shlex.quote(environment)}"
    reload = f" && kill -HUP {pid})" if has_gunicorn() else ")"
    url = f"http://{HOST}:{port}/vault/health"
    newest = f"{flask} vault rotate --list-backups | awk '/^flask_/ {{print $1; exit}}'"

    if shutil.which("curl"):
        look = f"curl -sS {url} | {python} -m json.tool"
    else:
        look = (
            f"{python} -c 'import urllib.request as r;"
            f' print(r.urlopen("{url}").read().decode())\''
        )

    return TEXT.format(
        host=HOST,
        port=port,
        look=look,
        rotate=f"{operator} && {flask} vault rotate --secret SECRET_KEY{reload}",
        restore=f'{operator} && {flask} vault rotate --yes --restore "$({newest})"'
        f"{reload}",
        rotated=RELOADED if has_gunicorn() else NOT_RELOADED,
        restored=RELOADED_BACK if has_gunicorn() else NOT_RELOADED_BACK,
    )


if __name__ == "__main__":
    sys.exit(main())
