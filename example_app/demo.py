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

from . import db
from .postgres import Postgres

HOST: t.Final = "127.0.0.1"
PORT: t.Final = 8000

APP: t.Final = pathlib.Path(__file__).resolve().parent
FLASK: t.Final = pathlib.Path(sys.executable).with_name("flask")

#: Seconds that the processes have to end when asked.
GRACE: t.Final = 15

#: Run by "flask vault dev" with a file and the server's command: tells us where the
#: operator's environment is. The app logs in with an AppRole, so it has no use for the
#: operator's token.
HAND_OVER: t.Final = (
    'echo "$_FLASK_VAULT_DEV_ENV" >"$0" && unset VAULT_TOKEN && exec "$@"'
)

TEXT: t.Final = """
The app answers at {url}/ with keys and a password from a real Vault.
Log in as "demo" with the password "demo", keep a note, and leave the page open.

Five things to try. Paste them into other terminals, from any directory.

1. Keep the app busy in a second terminal: it counts what fails. Ctrl-C ends it.

    {load}

2. In a third one, get a token, as a program does, and read the notes with it.

    {log_in}
    {read}

3. Rotate all there is: the key of the sessions, that of the tokens, and the password of
   the database, PostgreSQL. The old ones go to encrypted backups. It takes 10 seconds.

    {rotate}

4. Watch it in a fourth one, a few times meanwhile.

    {watch}

   For 5 seconds the new ones are pending: the workers accept them, and use the old
   ones. Then they are in use. A key that was replaced is accepted as long as there may
   be something that it has signed. All the while you stay logged in, the page that you
   left open takes a note, the token still reads them (the last line of 2), and the
   count of failures in the second terminal is 0.

5. Restore the backup of the session key. That is a rotation, too, so nobody notices.

    {restore}

Ctrl-C ends the app and its servers, and removes their files.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help=f"default: {PORT} if it is free")
    port = parser.parse_args().port or find_port(PORT, 0)
    asked: list[int] = []

    # A flag, and no exception, which could come between a start and its clean-up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))

    # All temporary files are made in here, also those of the processes that are killed.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="notes-"))
    postgres = Postgres(folder, find_port(0))

    try:
        postgres.start()
        db.create_tables(postgres.url)
        process = start(folder, port, postgres)

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
        postgres.stop()
        remove(folder)

    if asked:
        return 0

    code = process.returncode
    return code if code >= 0 else 128 - code


def find_port(*wanted: int) -> int:
    """The first of these ports that nobody has. 0 stands for any."""
    for port in wanted:
        with socket.socket() as probe:
            # As the server does: connections that ended lately do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

            try:
                probe.bind((HOST, port))
            except OSError:
                continue

            return int(probe.getsockname()[1])

    raise SystemExit(f"No port is free on {HOST}.")


def start(
    folder: pathlib.Path, port: int, postgres: Postgres
) -> subprocess.Popen[bytes]:
    """Start a Vault, what the app needs in it, and the app."""
    seed = folder / "seed.json"
    seed.touch(mode=0o600)
    seed.write_text(json.dumps({"database": postgres.document}))
    command = [sys.executable, "-m"]

    if importlib.util.find_spec("gunicorn") is not None:
        command += ["gunicorn", "--config", str(APP / "gunicorn_conf.py")]
        command += ["--bind", f"{HOST}:{port}", f"{APP.name}:create_app()"]
    else:
        print("Gunicorn is not installed: the app runs in one process, by 'flask run'.")
        command += ["flask", "run", "--host", HOST, "--port", str(port)]

    hand_over = ["sh", "-c", HAND_OVER, str(folder / "handed-over")]
    return subprocess.Popen(
        [
            *(FLASK, "--app", APP, "vault", "dev", "--seed", seed),
            *("--", *hand_over, *command),
        ],
        cwd=APP.parent,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            # Seconds. So that each worker logs in again and again, as it does when an
            # app is busy, and not with its first request alone.
            "FLASK_SQLALCHEMY_ENGINE_OPTIONS": '{"pool_recycle": 1}',
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
    """What to try, with the paths of this run."""
    environment = (folder / "handed-over").read_text().strip()
    flask = shlex.quote(str(FLASK))
    # In a subshell: a shell that kept the environment would look for this run's server
    # when it is long gone.
    vault = f"(. {shlex.quote(environment)} && {flask} vault"
    url = f"http://{HOST}:{port}"
    newest = f"{flask} vault rotate --list-backups | awk '/^flask_/ {{print $1; exit}}'"
    return TEXT.format(
        url=url,
        load=f"{shlex.quote(sys.executable)} {shlex.quote(str(APP / 'load.py'))} {url}",
        log_in=f"token=$(curl -sS {url}/api/token -d name=demo -d password=demo)",
        # Not as an argument, which everybody on the machine may see.
        read=f'echo "Authorization: Bearer $token" | curl -sS -H @- {url}/api/notes',
        rotate=f"{vault} rotate --all)",
        watch=f"{vault} status)",
        restore=f'{vault} rotate --yes --restore "$({newest})")',
    )


if __name__ == "__main__":
    sys.exit(main())
