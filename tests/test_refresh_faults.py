"""What goes wrong in a refresh costs the app no change, and holds up no request."""

from __future__ import annotations

import time
import typing as t

import pytest
from flask import Flask

from flask_vault import FlaskVault
from flask_vault import refresh_failed
from flask_vault import secret_rotated
from flask_vault import VaultUnavailableError
from flask_vault.extension import state_of
from flask_vault.keyring import KeyRing
from flask_vault.store import Held
from flask_vault.testing import DevCluster
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.documents import Location
from tests.helpers import Clock
from tests.helpers import new_app
from tests.helpers import start_app
from tests.test_refresh import admin
from tests.test_refresh import destroy
from tests.test_refresh import Heard
from tests.test_refresh import KEY
from tests.test_refresh import refresh
from tests.test_refresh import wait_for

#: So long that no round comes by itself.
NEVER = 3600.0


@pytest.fixture
def app(vault_mount: VaultMount, vault_proxy: FaultProxy) -> Flask:
    """An app that asks for ``a`` and then for ``b``, when it is told to."""
    vault_mount.write("a", {"k": "1"})
    vault_mount.write("b", {"k": "1"})
    return start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_READ_TIMEOUT=0.2),
        VAULT_REFRESH_INTERVAL=NEVER,
        VAULT_SECRETS={"A": "a#k", "B": "b#k"},
    )


@pytest.fixture
def ring_app(vault_mount: VaultMount) -> Flask:
    """An app with a ring of one key."""
    vault_mount.write("flask", {"key": "first key"})
    return start_app(
        vault_mount.config(), TESTING=True, VAULT_SECRETS={"SECRET_KEY": KEY}
    )


# What is known is not lost.


def test_a_poll_undoes_no_rotation_of_this_process(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = state_of(app).client
    heard, poll = Heard(app, secret_rotated), client.poll

    def rotate_then_poll(place: Location, *args: t.Any) -> Held:
        # The round has asked for "a" already, and has not taken it over yet.
        if place.path.endswith("/b"):
            client.rotate_secret("a", "k", new_value="2", backup=False)

        return poll(place, *args)

    monkeypatch.setattr(client, "poll", rotate_then_poll)
    assert refresh(app)[1] == {}
    assert app.config["A"] == "2"
    assert [(x["version"], x["origin"]) for _, x in heard.sent] == [(2, "local")]


def test_a_newest_version_that_went_unseen_hides_no_destroyed_one(
    ring_app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "second key"})
    refresh(ring_app)
    vault_mount.write("flask", {"key": "a mistake"})
    admin(vault_mount, "DELETE", "data", "flask")
    destroy(vault_mount, "flask", 1)

    for _ in range(2):
        assert refresh(ring_app)[1] == {"flask": "SecretVersionError"}
        assert ring_app.config["SECRET_KEY_FALLBACKS"] == ["second key"]

    assert ring_app.config["SECRET_KEY"] == "second key"


def test_a_field_of_a_template_that_was_emptied_is_refused(
    vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    vault_mount.write("db", {"user": "shop", "password": "made-up"})
    template = "postgresql://{user}:{password}@db/shop"
    app = start_app(
        vault_mount.config(),
        TESTING=True,
        VAULT_SECRETS={"URI": {"ref": "db", "template": template}},
    )
    vault_mount.write("db", {"user": "shop", "password": ""})
    assert refresh(app) == ((), {"db": "SecretValueError"})
    assert app.config["URI"] == "postgresql://shop:made-up@db/shop"
    assert f"'{vault_mount.name}/db#password' is empty" in caplog.text


def test_a_mount_that_keeps_too_few_versions_is_told_once(
    ring_app: Flask, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    Api(vault_mount.address).call(
        "POST",
        f"{vault_mount.name}/config",
        {"max_versions": 3},
        token=vault_mount.token,
    )

    for number in range(5):
        vault_mount.write("flask", {"key": f"key {number}"})
        refresh(ring_app)

    assert caplog.text.count("keeps 3 versions") == 1


# What others have hung on to it.


def test_a_follower_that_raises_loses_no_key_and_is_told(
    ring_app: Flask, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(ring: KeyRing) -> dict[str, t.Any]:
        if len(ring.accepted) > 1:
            raise TypeError("a bug of the user's")

        return {}

    state_of(ring_app).follow("SECRET_KEY", broken)
    vault_mount.write("flask", {"key": "second key"})

    assert refresh(ring_app) == (("SECRET_KEY",), {})
    assert ring_app.config["SECRET_KEY_FALLBACKS"] == ["first key", "second key"]
    assert "follows from SECRET_KEY could not be made: TypeError" in caplog.text


def test_a_hook_that_raises_keeps_the_change_from_no_other_and_is_told(
    vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    vault_mount.write("a", {"k": "1"})
    app = new_app(vault_mount.config(), TESTING=True, VAULT_SECRETS={"A": "a#k"})
    vault, seen = FlaskVault(app), []

    @vault.on_rotate("A")
    def broken(key: str, version: int | None) -> None:
        raise TypeError("a bug of the user's")

    @vault.on_rotate("A")
    def note(key: str, version: int | None) -> None:
        seen.append(app.config[key])

    vault_mount.write("a", {"k": "2"})
    assert refresh(app) == (("A",), {})
    assert seen == ["2"]
    assert "on_rotate('A') failed with TypeError" in caplog.text


def test_a_check_that_raises_holds_up_its_own_path_alone_and_is_told(
    app: Flask, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    bugs: list[Exception] = []

    def check(value: object) -> None:
        if bugs:
            raise bugs.pop()

    state_of(app).check_values("A", check)
    bugs.append(TypeError("a bug of the user's"))
    vault_mount.write("a", {"k": "2"})
    vault_mount.write("b", {"k": "2"})

    assert refresh(app) == (("B",), {"a": "SecretValueError"})
    assert (app.config["A"], app.config["B"]) == ("1", "2")
    assert "its check failed with TypeError" in caplog.text
    assert refresh(app) == (("A",), {})


# What fails, and what does not.


def test_an_optional_path_that_is_absent_is_no_failure_and_makes_nothing_stale(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("flask", {"key": "first key"})
    app = start_app(
        vault_mount.config(),
        VAULT_REFRESH_INTERVAL=NEVER,
        VAULT_SECRETS={"A": "flask#key", "B": {"ref": "absent#k", "default": "d"}},
    )
    heard, state, clock = Heard(app, refresh_failed), state_of(app), Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    clock.advance(2 * state.settings.propagation_window)
    assert state_of(app).is_stale

    assert refresh(app) == ((), {})
    state.prove_fresh()
    assert not state_of(app).is_stale
    assert heard.sent == []


def test_a_path_that_fails_as_well_later_is_told_once(
    app: Flask, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(app, refresh_failed)

    for path in ("a", "b"):
        vault_mount.write(path, {"k": ""})
        refresh(app)
        refresh(app)

    paths = [f"{vault_mount.name}/{path}" for path in ("a", "b")]
    assert [x["paths"] for _, x in heard.sent] == [(path,) for path in paths]
    assert [caplog.text.count(f"'{path}' is empty") for path in paths] == [1, 1]


def test_a_path_that_is_rate_limited_does_not_starve_the_others(
    app: Flask, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(429, match="/a$")
    vault_mount.write("b", {"k": "2"})
    errors = [refresh(app)[1] for _ in range(2)]
    assert errors == [{"a": "VaultRateLimitedError"}] * 2
    assert app.config["B"] == "2"


def test_a_server_that_asks_for_a_day_is_asked_again_within_an_interval(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("a", {"k": "1"})
    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_REFRESH_INTERVAL=0.1,
        VAULT_SECRETS={"A": "a#k"},
    )
    vault_mount.write("a", {"k": "2"})
    vault_proxy.answer(429, headers={"Retry-After": "86400"}, match="/a$", times=1)
    assert refresh(app)[1] == {"a": "VaultRateLimitedError"}
    state_of(app).start()
    wait_for(lambda: app.config["A"] == "2", 5)
    state_of(app).refresher.stop()


# Who waits.


def test_a_server_that_hangs_holds_up_no_request_once_that_is_known(
    app: Flask, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = state_of(app).refresher
    here = refresher._local.get()
    held_up: list[object] = []
    monkeypatch.setattr(refresher, "_catch_up", held_up.append)
    long_ago = time.monotonic() - 2 * NEVER
    refresher._note(last_success=long_ago)

    def request() -> int:
        # Longer ago than a round may be.
        here.tried_at = long_ago
        here.look_at = 0.0
        app.test_client().get("/vault/health")
        return len(held_up)

    assert request() == 1
    # The thread has looked after the token, and sleeps.
    wait_for(lambda: here.token_at)
    vault_proxy.hang()
    assert refresh(app)[1] == {"a": "VaultConnectionError"}
    assert request() == 1

    # Nor while a round has not met the silence yet.
    refresher._note(errors={})

    with here.lock:
        assert request() == 1

    assert request() == 2
    refresher.stop()


def test_whoever_asks_waits_though_something_else_is_denied(
    app: Flask, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    state = state_of(app)
    vault_proxy.answer(403, match="/b$")
    assert refresh(app)[1] == {"b": "VaultPermissionError"}
    vault_mount.write("a", {"k": "2"})
    state.start()
    assert state.ask() is True
    assert app.config["A"] == "2"
    state.refresher.stop()


# Who proves that it is up to date.


def test_a_standby_that_is_cut_off_is_no_proof_for_any_token() -> None:
    with DevCluster(2) as cluster:
        leader, standby = cluster.leader(), cluster.standbys()[0]
        root, address = cluster.root_token, cluster.addresses[standby]
        lead, follow = Api(cluster.addresses[leader]), Api(address)
        policy = 'path "secret/*" { capabilities = ["read"] }'
        role = {"policies": ["reader"], "type": "batch"}
        lead.call("POST", "secret/data/a", {"data": {"k": "1"}}, token=root)
        lead.call("PUT", "sys/policies/acl/reader", {"policy": policy}, token=root)
        made = lead.call("POST", "auth/token/create", role, token=root)
        batch = made["auth"]["client_token"]
        wait_for(lambda: follow.ask("GET", "secret/data/a", token=batch)[0] == 200)
        states = [
            state_of(
                start_app(
                    {"VAULT_ADDR": address, "VAULT_TOKEN": token},
                    TESTING=True,
                    VAULT_SECRETS={"A": "a#k"},
                )
            )
            for token in (root, batch)
        ]

        for state in states:
            state.prove_fresh()

        cluster.kill(leader)

        for state in states:
            proved = state.client.transport.fresh_at
            # It goes on answering.
            assert state.refresh().errors == {}

            with pytest.raises(VaultUnavailableError):
                state.prove_fresh()

            assert state.client.transport.fresh_at == proved
