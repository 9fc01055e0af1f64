"""No value and no token is in a log, an exception, a traceback, a repr or an answer."""

from __future__ import annotations

import collections.abc as cabc
import gc
import logging
import os
import pathlib
import traceback
import typing as t
from functools import partial

import pytest
import requests
from flask import Flask

from flask_vault import FlaskVault
from flask_vault import VaultClient
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault.resolve import Outcome
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import Clock
from tests.helpers import is_write
from tests.helpers import new_app

CANARY = "canary-a51c-value"
NEW_CANARY = "canary-a51c-new-value"
ENV_CANARY = "canary-a51c-from-env"

SECRETS = {
    "KEY": {"ref": "app#key", "rotate": "token"},
    "URL": {"ref": "app", "template": "redis://:{key}@db"},
    "NUMBER": {"ref": "app#key", "cast": "int", "required": False},
    "ENV": {"ref": "gone#x", "env": "ENV_CANARY"},
    "DEFAULT": {"ref": "gone#x", "default": CANARY},
}


class World:
    """A client that has read, rotated and restored something, and all it must hide."""

    def __init__(
        self,
        server: DevServer,
        mount: VaultMount,
        proxy: FaultProxy,
        folder: pathlib.Path,
    ) -> None:
        mount.write("app", {"key": CANARY, "nested": {"deep": [CANARY]}})
        rights = '["create", "list", "read", "update"]'
        role = approle(server, f'path "{mount.name}/*" {{ capabilities = {rights} }}')
        self.proxy = proxy
        self.config: dict[str, t.Any] = mount.config(
            VAULT_ADDR=proxy.address,
            VAULT_TOKEN=None,
            VAULT_AUTH=role,
            VAULT_SECRETS=SECRETS,
            VAULT_BACKUP_DIR=folder / "backups",
            VAULT_BACKUP_KEYS=[BACKUP_KEY],
            VAULT_READ_TIMEOUT=0.3,
        )
        self.client = VaultClient.from_mapping(self.config)
        self.backup = str(self.client.rotate_secret("app", "key", NEW_CANARY).backup)
        self.client.restore_secret(self.backup)
        self.client.get_secret("app")
        token = self.client._transport.token
        assert token is not None
        self.hidden = {
            CANARY,
            NEW_CANARY,
            ENV_CANARY,
            BACKUP_KEY,
            token.value,
            mount.token,
            str(role["secret_id"]),
        }

    def shows(self, text: str) -> set[str]:
        return {secret for secret in self.hidden if secret in text}


@pytest.fixture
def world(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> World:
    monkeypatch.setenv("ENV_CANARY", ENV_CANARY)

    for name in ("", "flask_vault", "hvac", "urllib3", "requests"):
        caplog.set_level(logging.DEBUG, name)

    return World(vault_server, vault_mount, vault_proxy, tmp_path)


def traceback_of(error: BaseException) -> str:
    """As an error tracker shows it: with the locals of each frame but the tests' own,
    which stand for the user's."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    queue: list[traceback.TracebackException | None] = [shown]

    while queue:
        part = queue.pop()

        if part is not None:
            part.stack[:] = [f for f in part.stack if f.filename != __file__]
            queue += [part.__cause__, part.__context__]

    return "".join(shown.format())


def everything_about(error: BaseException) -> str:
    return f"{error!r} {error} {vars(error)!r} {traceback_of(error)}"


def judge(world: World, name: str, call: cabc.Callable[[], object]) -> bool:
    """Whether a call fails; and when it does, with an error of ours that hides all."""
    try:
        call()
    except VaultError as error:
        assert not world.shows(everything_about(error)), name
        assert error.__context__ is None
        assert error.__cause__ is None
        return True
    except Exception as error:
        # It comes with all the frames, which hold tokens and values.
        pytest.fail(f"{name!r} raised {type(error).__name__}, none of our errors.")

    return False


# Faults. Those that answer do it with a value, as a server or a proxy before it might.


def nothing(proxy: FaultProxy) -> None:
    pass


def cut(proxy: FaultProxy) -> None:
    proxy.cut()


def hang(proxy: FaultProxy) -> None:
    proxy.hang()


def lost_answer(proxy: FaultProxy) -> None:
    proxy.drop_reply(times=None)


def lost_write(proxy: FaultProxy) -> None:
    proxy.drop_reply(times=None, match=is_write)


def refused_write(proxy: FaultProxy) -> None:
    said = {"errors": ["check-and-set parameter did not match the current version"]}
    proxy.answer(400, said, match=is_write)


def stranger(status: int, body: str | None) -> cabc.Callable[[FaultProxy], None]:
    def fault(proxy: FaultProxy) -> None:
        proxy.answer(status, body)

    return fault


FAULTS: dict[str, cabc.Callable[[FaultProxy], None]] = {
    "cut": cut,
    "hang": hang,
    "lost-answer": lost_answer,
    "lost-write": lost_write,
    "refused-write": refused_write,
    "403": stranger(403, None),
    "404": stranger(404, None),
    "404-deleted": stranger(404, '{"data": {"metadata": {"version": 1}}}'),
    "429": stranger(429, None),
    "500": stranger(500, f"<html>{CANARY}"),
    "503-sealed": stranger(503, '{"errors": ["Vault is sealed"]}'),
    "307": stranger(307, CANARY),
    "html": stranger(200, f"<html>{CANARY}"),
    "half-a-document": stranger(200, f'{{"data": {{"data": {{"key": "{CANARY}"}}}}}}'),
    "no-version": stranger(
        200, f'{{"data": {{"data": {{"key": "{CANARY}"}}, "metadata": {{}}}}}}'
    ),
    "cut-short": stranger(200, f'{{"data": {{"data": {{"key": "{CANARY}'),
    "nested": stranger(200, "[" * 100_000 + CANARY),
}

CALLS: dict[str, cabc.Callable[[World], object]] = {
    "get": lambda w: w.client.get_secret("app", "key", use_cache=False),
    "get-fresh": lambda w: VaultClient.from_mapping(w.config).get_secret("app", "key"),
    "set": lambda w: w.client.set_secret("app", {"other": NEW_CANARY}),
    "rotate": lambda w: w.client.rotate_secret("app", "key", NEW_CANARY),
    "restore": lambda w: w.client.restore_secret(w.backup),
    "list": lambda w: w.client.list_secrets(),
    "health": lambda w: w.client.health_check(),
    "init": lambda w: FlaskVault(new_app(w.config)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_shows_nothing(
    fault: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    FAULTS[fault](world.proxy)
    failed = [judge(world, name, partial(call, world)) for name, call in CALLS.items()]

    # Of a lost answer to a write, reading tells.
    assert any(failed) or fault == "lost-write"
    assert not world.shows(caplog.text)


Calls = dict[str, cabc.Callable[[World], object]]

MISTAKES: Calls = {
    "no such field": lambda w: w.client.get_secret("app", "gone"),
    "lost race": lambda w: w.client.set_secret("app", {"key": NEW_CANARY}, cas=99),
    "no name": lambda w: w.client.set_secret("app", {"": NEW_CANARY}),
    "bytes": lambda w: w.client.set_secret("app", {"key": NEW_CANARY.encode()}),
    "same value": lambda w: w.client.rotate_secret("app", "key", CANARY),
    "nothing to rotate": lambda w: w.client.rotate_secret("app", "gone", NEW_CANARY),
    "rotate to bytes": lambda w: w.client.rotate_secret(
        "app", "key", t.cast(t.Any, NEW_CANARY.encode())
    ),
    "no such backup": lambda w: w.client.restore_secret("gone.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_call_that_is_wrong_shows_nothing(
    mistake: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert judge(world, mistake, partial(MISTAKES[mistake], world))
    assert not world.shows(caplog.text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"VAULT_TOKEN": f"{CANARY}\n{CANARY}", "VAULT_AUTH": None},
        {"VAULT_TOKEN": f"{CANARY} {CANARY}", "VAULT_AUTH": None},
        {"VAULT_TOKEN": CANARY, "VAULT_AUTH": None},
        {"VAULT_AUTH": {"method": "token", "token": f"{CANARY}\r\n{CANARY}"}},
        {"VAULT_AUTH": {"method": "approle", "role_id": CANARY, "secret_id": CANARY}},
        {"VAULT_AUTH": {"method": "approle", "secret_id": CANARY, "rol_id": CANARY}},
        {"VAULT_BACKUP_KEYS": [CANARY]},
        {"VAULT_ADDR": f"https://user:{CANARY}@vault.internal"},
        {"VAULT_NAMESPACE": f"{CANARY}\n{CANARY}"},
        {"VAULT_HEALTH_TOKEN": CANARY, "VAULT_HEALTH_DETAILS": "tokn"},
        {"VAULT_SECRETS": {"K": {"ref": "app#key", "cast": "int"}}},
        {"VAULT_SECRETS": {"K": {"ref": "app#key", "cast": "json"}}},
        {"VAULT_SECRETS": {"K": {"ref": "app#nested"}}},
        {"VAULT_SECRETS": {"K": {"ref": "app#key", "defalt": CANARY}}},
        {"VAULT_SECRETS": {"K": {"ref": "app", "template": "x://{gone}"}}},
        {"VAULT_SECRETS": {"K": {"ref": "x#y", "env": "ENV_CANARY", "cast": "int"}}},
    ],
    ids=repr,
)
def test_a_config_that_is_wrong_shows_nothing(
    wrong: dict[str, object], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app({**world.config, **wrong})

    # A key for backups is looked at when it is needed.
    assert judge(world, "init", lambda: FlaskVault(app)) or "VAULT_BACKUP_KEYS" in wrong
    assert not world.shows(caplog.text)


@pytest.mark.parametrize(
    "original",
    [
        requests.exceptions.InvalidHeader(f"Invalid header value {CANARY}"),
        requests.exceptions.ConnectionError(f"Bad request {CANARY}"),
        requests.exceptions.RequestException(CANARY),
        UnicodeEncodeError("latin-1", CANARY, 0, 1, CANARY),
        ValueError(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_http_library_says_is_not_passed_on(
    original: Exception,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``requests`` prints the header that it refuses, and so the token."""

    def refuse(*args: object, **kwargs: object) -> t.NoReturn:
        raise original

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)

    for name in ("get", "set", "rotate", "init"):
        assert judge(world, name, partial(CALLS[name], world))

    assert not world.shows(caplog.text)


def test_success_shows_nothing_either(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    FlaskVault(new_app(world.config))

    for call in CALLS.values():
        call(world)

    # Both really logged: the test would see it.
    assert {"flask_vault", "urllib3.connectionpool"} <= {r.name for r in caplog.records}
    assert not world.shows(caplog.text)


def test_no_repr_of_ours_shows_anything(world: World) -> None:
    app = new_app(world.config)
    vault = FlaskVault(app)
    world.proxy.cut()

    with pytest.raises(VaultError):
        world.client.get_secret("app", "key", use_cache=False)

    with app.app_context():
        client = vault.client
        client.get_secret("app", "key", fallback_env="ENV_CANARY")
        seen = set()

        for thing in gc.get_objects():
            kind = type(thing)

            room = str(kind.__module__)

            # The test tools are told what to answer, and show it.
            if not room.startswith("flask_vault") or ".testing" in room:
                continue

            shown = repr(thing)
            assert not world.shows(shown), kind
            seen.add(kind.__name__)

    # Of that which holds what is to be hidden, all was looked at.
    assert {
        "Settings", "VaultClient", "FlaskVault", "Secret", "Entry", "Document", "Held",
        "Snapshot", "Token", "Transport", "AppRoleLogin", "Outcome", "AppState", "Pin",
    } <= seen  # fmt: skip


def test_what_a_rotation_and_its_parts_look_like(world: World) -> None:
    client = world.client
    rotated = client.rotate_secret("app", "key", NEW_CANARY)
    targets = client.catalog.plan().targets
    backup = client.backups.read(str(rotated.backup))

    assert not world.shows(f"{rotated} {targets} {backup} {client.backups.list()}")


def test_a_backup_holds_nothing_in_clear(world: World, tmp_path: pathlib.Path) -> None:
    files = [p for p in (tmp_path / "backups").iterdir() if p.is_file()]
    assert len(files) == 2

    for file in files:
        assert not world.shows(file.read_text())
        assert file.stat().st_mode & 0o077 == 0


def test_the_health_of_an_app_shows_nothing(world: World) -> None:
    app = new_app(world.config, VAULT_HEALTH_DETAILS="always")
    FlaskVault(app)
    client: VaultClient = app.extensions["vault"].client
    clock = Clock()
    client._store._clock = clock
    client.get_secret("app", use_cache=False)
    clock.advance(301)
    world.proxy.cut()
    client.get_secret("app")
    answer = app.test_client().get("/vault/health")

    assert answer.json is not None
    assert answer.json["status"] == "warn"
    assert not world.shows(f"{answer.get_data(as_text=True)} {answer.headers}")


def test_an_error_that_is_kept_keeps_no_frames(world: World) -> None:
    """They would hold tokens and answers for as long as the app lives."""
    world.proxy.cut()
    app = new_app(world.config, VAULT_SECRETS={"ENV": SECRETS["ENV"]})
    FlaskVault(app)
    outcomes: dict[str, Outcome] = app.extensions["vault"].outcomes
    kept = [o.error for o in outcomes.values()]

    with pytest.raises(VaultConnectionError):
        world.client.get_secret("app", use_cache=False)

    kept += world.client._store.failing.values()

    assert len(kept) == 2

    for error in kept:
        assert error is not None
        assert not world.shows(everything_about(error))


def test_an_app_that_is_loaded_late_shows_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was built for ``flask --help``, and serves a request all the same."""
    app = new_app(world.config)

    with monkeypatch.context() as patch:
        patch.setattr("flask_vault.extension.will_not_use_it", lambda: True)
        FlaskVault(app)

    app.testing = True  # Errors reach the test.
    world.proxy.answer(200, f"<html>{CANARY}")

    with pytest.raises(VaultError) as caught:
        app.test_client().get("/")

    assert not world.shows(everything_about(caught.value))


def test_the_config_itself_is_the_apps_to_hide(world: World) -> None:
    """What is not ours to promise, so that nobody relies on it."""
    app: Flask = new_app(world.config)
    FlaskVault(app)

    assert CANARY in repr(app.config)
    assert CANARY not in repr(app)
    assert os.environ["ENV_CANARY"] == ENV_CANARY
