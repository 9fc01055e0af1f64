"""A worker that has not run for longer than the window: it was forked late, or frozen.

What it knows is out of date, and the others sign with keys of which it has not heard.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from flask import Flask
from flask import session
from flask.sessions import SecureCookieSessionInterface

from flask_vault import FlaskVault
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import at_once
from tests.hosts import Host
from tests.hosts import wait_for

WINDOW, INTERVAL = 0.5, 0.3
SETTINGS = {"VAULT_PROPAGATION_WINDOW": WINDOW, "VAULT_REFRESH_INTERVAL": INTERVAL}
SLOW = {"VAULT_PROPAGATION_WINDOW": 120, "VAULT_REFRESH_INTERVAL": 30}
KEY = {"ref": "flask#key", "keyring": True}


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("flask", {"key": "first key"})
    vault_mount.write("jwt", {"key": "token key".ljust(32, ".")})
    return vault_mount


def new_app(mount: VaultMount, **extra: object) -> Flask:
    app = Flask("shop")
    app.config.from_mapping({**mount.config(), **SETTINGS, **extra})
    app.config["VAULT_SECRETS"] = {"SECRET_KEY": KEY}
    FlaskVault(app)
    app.add_url_rule("/", view_func=lambda: str(session.get("count")))
    return app


def new_cookie() -> str:
    """What a host that is up to date has signed."""
    other = Flask("shop")
    other.secret_key = "second key"
    serializer = SecureCookieSessionInterface().get_signing_serializer(other)
    assert serializer is not None
    return str(serializer.dumps({"count": 7}))


COOKIE = new_cookie()


def look(app: Flask) -> str:
    client = app.test_client()
    client.set_cookie("session", COOKIE)
    return client.get("/").text


@pytest.mark.parametrize("mode", ["thread", "request"])
def test_its_first_request_knows_the_keys_of_now(mount: VaultMount, mode: str) -> None:
    """As of a worker that takes the place of another under ``--preload``."""
    app = new_app(mount, VAULT_REFRESH_MODE=mode)
    loaded = time.monotonic()
    mount.write("flask", {"key": "second key"})
    wait_for(lambda: time.monotonic() > loaded + 2 * WINDOW)
    assert look(app) == "7"


@pytest.mark.parametrize("mode", ["thread", "request"])
def test_when_vault_is_away_it_waits_once(
    mount: VaultMount, vault_proxy: FaultProxy, mode: str
) -> None:
    app = new_app(mount, VAULT_REFRESH_MODE=mode, VAULT_ADDR=vault_proxy.address)
    loaded = time.monotonic()
    vault_proxy.cut()
    wait_for(lambda: time.monotonic() > loaded + 2 * WINDOW)
    assert look(app) == "None"
    began = time.monotonic()

    for _ in range(20):
        assert look(app) == "None"

    # Each of them would wait for two seconds.
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("mode", ["thread", "request", "off"])
def test_all_threads_that_meet_a_new_key_at_once_wait_for_it(
    mount: VaultMount, mode: str
) -> None:
    def new_host() -> Flask:
        app = new_app(mount, VAULT_REFRESH_MODE=mode, **SLOW, VAULT_SESSION_GUARD=True)
        app.test_client().get("/")
        return app

    # Which of them is a little late is a matter of chance.
    apps = [new_host() for _ in range(10)]
    mount.write("flask", {"key": "second key"})

    for app in apps:
        assert at_once(8, lambda _, app=app: look(app)) == ["7"] * 8  # type: ignore[misc]


def test_a_worker_that_was_frozen_knows_the_keys_of_now(mount: VaultMount) -> None:
    config = mount.config(**SETTINGS)

    with Host("tests.apps.two_hosts:create_app()", config, workers=1) as host:
        host.await_answer("/look")
        worker = host.ask("/look").json["pid"]
        os.kill(worker, signal.SIGSTOP)
        frozen = time.monotonic()
        mount.write("flask", {"key": "second key"})
        wait_for(lambda: time.monotonic() > frozen + 3 * WINDOW)
        os.kill(worker, signal.SIGCONT)
        answer = host.ask("/look", cookie=COOKIE)

    assert answer.json["count"] == 7
