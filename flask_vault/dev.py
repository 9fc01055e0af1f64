"""``flask vault dev``: the app on a server of its own, with nothing to set up."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import typing as t

import click
from flask.cli import ScriptInfo

from .catalog import Catalog
from .console import opened_app
from .console import table
from .entries import Entry
from .entries import MISSING
from .errors import VaultConfigError
from .policy import app_policy
from .provisioning import fields_of
from .provisioning import provision
from .provisioning import Seed
from .rotation.keys import new_key
from .settings import DEV_FILE
from .settings import ENVIRONMENT
from .testing import DevServer

_ROLE: t.Final = "flask-vault-dev"


def run_dev(info: ScriptInfo, command: tuple[str, ...], seeds: object = None) -> int:
    """Run a command against a new server, and clean up after it.

    :param command: ``flask run`` when empty.
    :param seeds: ``{path: {field: value}}``, values that nobody generates.
    :return: the exit code of the command; 128 and the number of the signal that ended
        it.
    """
    if not command and info.create_app is not None:
        raise VaultConfigError(
            "This command line has its app built in, so 'flask run' would not find it:"
            " name the command to run, as in 'flask vault dev -- COMMAND'."
        )

    with (
        _ended_by_a_signal(),
        tempfile.TemporaryDirectory(prefix="flask-vault-dev-") as folder,
        DevServer() as server,
    ):
        environ = _prepare(pathlib.Path(folder), server, info, seeds)
        return _run(command or _flask_run(), environ)


@contextlib.contextmanager
def _ended_by_a_signal() -> cabc.Iterator[None]:
    """Have SIGTERM and SIGHUP end this process by way of its clean-up."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    with _handlers({signal.SIGTERM: end, signal.SIGHUP: end}):
        yield


@contextlib.contextmanager
def _handlers(
    handlers: cabc.Mapping[signal.Signals, t.Any],
) -> cabc.Iterator[None]:
    previous = {number: signal.signal(number, h) for number, h in handlers.items()}

    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flask_run() -> tuple[str, ...]:
    return (sys.executable, "-m", "flask", "run")


def _prepare(
    folder: pathlib.Path, server: DevServer, info: ScriptInfo, seeds: object
) -> dict[str, str]:
    overrides: dict[str, t.Any] = {
        "VAULT_ENABLED": True,
        "VAULT_ADDR": server.address,
        "VAULT_AUTH": {"method": "token", "token": server.root_token},
        "VAULT_TOKEN": None,
        "VAULT_NAMESPACE": None,
        "VAULT_KV_VERSION": None,
        "VAULT_CACERT": None,
        "VAULT_SKIP_VERIFY": False,
        "VAULT_CLIENT_CERT": None,
        "VAULT_CLIENT_KEY": None,
        "VAULT_PROXY": None,
        "VAULT_ROTATE_AUTH": None,
        "VAULT_BOOTSTRAP_CACHE": None,
        "VAULT_BACKUP_DIR": str(folder / "backups"),
        "VAULT_BACKUP_KEYS": [new_key()],
        "VAULT_BACKUP_TRANSIT_KEY": None,
    }
    file = folder / "settings.json"
    _write_private(file, json.dumps(overrides))
    names = {name for names in ENVIRONMENT.values() for name in names}
    # What this flask command tells itself would keep app.run() from running.
    names.add("FLASK_RUN_FROM_CLI")
    environ = {k: v for k, v in os.environ.items() if k not in names}
    environ[DEV_FILE] = str(file)
    # A new server has one environment, so naming it is no guess.
    environ["VAULT_ENVIRONMENT"] = os.environ.get("VAULT_ENVIRONMENT") or "development"

    if info.app_import_path:
        environ["FLASK_APP"] = info.app_import_path

    role_id, secret_id = _fill(server, info, environ, seeds)
    overrides["VAULT_AUTH"] = {
        "method": "approle",
        "role_id": role_id,
        "secret_id": secret_id,
    }
    _write_private(file, json.dumps(overrides))
    ours = {
        DEV_FILE: environ[DEV_FILE],
        "VAULT_ADDR": server.address,
        "VAULT_TOKEN": server.root_token,
        "VAULT_ENVIRONMENT": environ["VAULT_ENVIRONMENT"],
    }

    if "FLASK_APP" in environ:
        ours["FLASK_APP"] = environ["FLASK_APP"]

    script = folder / "env"
    _write_private(
        script, "".join(f"export {k}={shlex.quote(v)}\n" for k, v in ours.items())
    )
    click.echo(
        f"The server is {server.address}. The app logs in with an AppRole that may read"
        " its own secrets. In another terminal, this makes you its operator:\n\n"
        f"    . {shlex.quote(str(script))}\n"
    )
    sys.stdout.flush()
    # The operator's token is not for the app, nor for its process.
    return {
        **environ,
        "VAULT_ADDR": server.address,
        "VAULT_ROLE_ID": role_id,
        "VAULT_SECRET_ID": secret_id,
        "_FLASK_VAULT_DEV_ENV": str(script),
    }


def _fill(
    server: DevServer,
    info: ScriptInfo,
    environ: cabc.Mapping[str, str],
    seeds: object,
) -> tuple[str, str]:
    """Create what the app needs, and a role that may read it."""
    before = dict(os.environ)
    context = click.Context(click.Command("dev"), obj=info)

    try:
        # The app is looked at in this process, which has the environment of the user.
        os.environ.clear()
        os.environ.update(environ)

        with opened_app(context, "inspect") as (state, _):
            client = state.client
            seed = _seed(seeds, client.catalog)
            done = provision(client.kv, client.catalog, seed, environ)
            state.keep_histories(state.live.places)

            if done:
                click.echo(
                    table(
                        ("reference", "state", "keys"),
                        ((p.reference, p.action, ", ".join(p.keys)) for p in done),
                    )
                )

            missing = [p.reference for p in done if p.action == "missing" and p.needed]

            if missing:
                click.echo(
                    f"Only you know {', '.join(missing)}: put a value into the file"
                    " that --seed names."
                )

            policy = app_policy(client.catalog, client.kv.mount_of)
    finally:
        os.environ.clear()
        os.environ.update(before)

    # A server refuses an empty policy.
    return server.create_approle(_ROLE, policy or 'path "none" {}\n')


def _seed(seeds: object, catalog: Catalog) -> Seed:
    given: dict[str, dict[str, t.Any]] = {} if seeds is None else t.cast(t.Any, seeds)

    if not isinstance(given, dict) or not all(
        isinstance(fields, dict) for fields in given.values()
    ):
        raise VaultConfigError(
            'The --seed file is a JSON object such as {"stripe": {"api_key": "..."}}.'
        )

    known: dict[str, set[str]] = {}

    for entry in catalog.entries:
        known.setdefault(_path_of(entry), set()).update(fields_of(entry))

    for path, fields in given.items():
        wanted = known.get(path)

        for field in fields if wanted is None else set(fields) - wanted:
            # An entry that wants the whole document takes any field.
            if wanted is None or "" not in wanted:
                raise VaultConfigError(
                    f"The --seed file has {f'{path}#{field}'!r}, which no entry of"
                    f" VAULT_SECRETS names; the paths are {', '.join(sorted(known))}."
                )

    def seed(field: str, entry: Entry) -> t.Any:
        path, secret = _path_of(entry), entry.secret

        if field == "":
            return given.get(path)

        if given.get(path, {}).get(field) is not None:
            return given[path][field]

        if secret.template is None and secret.env and os.environ.get(secret.env):
            return os.environ[secret.env]

        if secret.default is not MISSING or secret.cast not in {None, "str"}:
            return None

        # Obviously no secret, and enough for the app to start.
        return f"dev-{path.strip('/').replace('/', '-')}-{field}"

    return seed


def _path_of(entry: Entry) -> str:
    return str(dataclasses.replace(entry.reference, field=None))


def _write_private(path: pathlib.Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _run(command: tuple[str, ...], environ: dict[str, str]) -> int:
    """Run a command to its end. Ctrl-C reaches it too, as it shares our terminal."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if child is None:
            early.append(number)
        elif number != signal.SIGINT:
            # The terminal sends Ctrl-C to the child as well.
            child.send_signal(number)

    with _handlers(
        {
            signal.SIGINT: pass_on,
            signal.SIGTERM: pass_on,
            signal.SIGHUP: pass_on,
        }
    ):
        try:
            child = subprocess.Popen(command, env=environ)  # noqa: S603 - the user's
        except OSError as error:
            raise VaultConfigError(
                f"The command {command[0]!r} cannot be run ({error.strerror}): check"
                " its name and PATH."
            ) from None

        for number in early:
            child.send_signal(number)

        code = child.wait()

    return code if code >= 0 else 128 - code
