"""A worker that is behind does not log out the users of the others."""

from __future__ import annotations

import time
import typing as t

import pytest
from flask import Flask
from flask import session
from flask.sessions import SecureCookieSessionInterface
from flask.sessions import SessionInterface
from itsdangerous import URLSafeTimedSerializer
from werkzeug.test import TestResponse

from flask_vault import FlaskVault
from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.session_guard import GuardedSessionInterface
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import at_once
from tests.helpers import new_app

KEY = {"ref": "flask#key", "keyring": True}
WINDOW = 0.5


def add_views(app: Flask) -> Flask:
    @app.get("/")
    def count() -> str:
        session["count"] = session.get("count", 0) + 1
        return str(session["count"])

    @app.get("/look")
    def look() -> str:
        return str(session.get("count"))

    @app.get("/out")
    def log_out() -> str:
        session.clear()
        session.modified = True
        return "out"

    return app


@pytest.fixture
def app(vault_mount: VaultMount, vault_proxy: FaultProxy) -> Flask:
    """A guarded app that hears of a change when it asks."""
    vault_mount.write("flask", {"key": "first key"})
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_REFRESH_MODE="off",
        VAULT_SESSION_GUARD=True,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    FlaskVault(app)
    return add_views(app)


def cookie_of(key: str, **data: object) -> str:
    """What a worker signs that has this key."""
    other = Flask("shop")
    other.secret_key = key
    serializer = SecureCookieSessionInterface().get_signing_serializer(other)
    assert serializer is not None
    return str(serializer.dumps(data))


def get(app: Flask, path: str, cookie: str) -> TestResponse:
    return app.test_client(use_cookies=False).get(
        path, headers={"Cookie": f"session={cookie}"}
    )


def make_stale(app: Flask, proxy: FaultProxy) -> None:
    """Have an app be as after a cut that was longer than the window."""
    proxy.cut()
    refresher = state_of(app).refresher
    long_ago = time.monotonic() - 2 * state_of(app).settings.propagation_window
    refresher._note(last_success=long_ago, last_fresh=long_ago)
    # Nobody knows how old it is when the app refreshes by itself.
    assert not state_of(app).is_stale
    refresher.mode = "thread"
    assert state_of(app).is_stale


def test_a_cookie_of_a_key_that_is_new_is_accepted_after_one_refresh(
    app: Flask, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"key": "second key"})
    cookie, asked = cookie_of("second key", count=7), vault_proxy.count
    vault_proxy.delay = 0.2
    answers = at_once(4, lambda _: get(app, "/look", cookie).text)

    assert answers == ["7"] * 4
    # The metadata, which tell of a new version, and that version.
    assert vault_proxy.count - asked == 2


def test_unknown_cookies_cost_no_more_than_one_refresh_in_5_seconds(
    app: Flask, vault_proxy: FaultProxy
) -> None:
    asked = vault_proxy.count

    for number in range(20):
        cookie = cookie_of(f"nobody's key {number}", count=7)
        assert get(app, "/look", cookie).text == "None"

    assert vault_proxy.count - asked == 1


@pytest.mark.parametrize("path", ["/", "/out"])
def test_a_stale_worker_leaves_a_cookie_that_it_cannot_verify_alone(
    app: Flask, vault_proxy: FaultProxy, path: str
) -> None:
    make_stale(app, vault_proxy)
    answer = get(app, path, cookie_of("second key", count=7))
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Vary"] == "Cookie"


def test_a_stale_worker_serves_the_cookies_of_the_keys_that_it_has(
    app: Flask, vault_proxy: FaultProxy
) -> None:
    make_stale(app, vault_proxy)
    answer = get(app, "/", cookie_of("first key", count=7))
    assert answer.text == "8"
    assert "Set-Cookie" in answer.headers

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]


def test_one_request_of_a_connection_says_nothing_of_the_next(
    app: Flask, vault_proxy: FaultProxy
) -> None:
    """Two requests within one app context, as tests of an app make them."""
    make_stale(app, vault_proxy)

    with app.app_context():
        get(app, "/", cookie_of("second key", count=7))
        assert "Set-Cookie" in get(app, "/", cookie_of("first key", count=7)).headers


def test_a_worker_that_is_up_to_date_does_as_flask_does(app: Flask) -> None:
    plain = add_views(Flask("shop"))
    plain.secret_key = "first key"
    genuine = cookie_of("first key", count=7)
    tampered = genuine[:-1] + ("A" if genuine[-1] != "A" else "B")

    for cookie in (genuine, tampered, "", "x", cookie_of("another key", count=7)):
        for path in ("/", "/look", "/out"):
            ours, its = get(app, path, cookie), get(plain, path, cookie)
            assert ours.text == its.text
            assert ("Set-Cookie" in ours.headers) is ("Set-Cookie" in its.headers)


def test_without_the_guard_the_cookie_is_overwritten(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"key": "first key"})
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_REFRESH_MODE="off",
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    FlaskVault(app)
    add_views(app)
    make_stale(app, vault_proxy)
    answer = get(app, "/", cookie_of("second key", count=7))
    assert "Set-Cookie" in answer.headers


def test_a_worker_that_was_cut_off_knows_it_after_the_window(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"key": "first key"})
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_REFRESH_INTERVAL=0.1,
        VAULT_PROPAGATION_WINDOW=WINDOW,
        VAULT_SESSION_GUARD=True,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    FlaskVault(app)
    add_views(app)
    cookie = cookie_of("second key", count=7)
    assert "Set-Cookie" in get(app, "/", cookie).headers
    vault_proxy.cut()
    deadline = time.monotonic() + 20

    while "Set-Cookie" in get(app, "/", cookie).headers:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    vault_proxy.heal()

    while "Set-Cookie" not in get(app, "/", cookie).headers:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    state_of(app).refresher.stop()


@pytest.mark.parametrize("path", ["/", "/look"])
def test_a_cookie_that_is_good_is_verified_once(
    app: Flask, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    verified: list[object] = []
    loads = URLSafeTimedSerializer.loads

    def count(self: URLSafeTimedSerializer, s: t.Any, **options: t.Any) -> t.Any:
        verified.append(s)
        return loads(self, s, **options)

    monkeypatch.setattr(URLSafeTimedSerializer, "loads", count)
    cookie = cookie_of("first key", count=7)
    get(app, path, cookie)
    assert verified == [cookie]


def test_sessions_of_another_kind_are_an_error(vault_mount: VaultMount) -> None:
    class StoredSessions(SessionInterface):
        pass

    vault_mount.write("flask", {"key": "first key"})
    app = new_app(
        vault_mount.config(),
        VAULT_SESSION_GUARD=True,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    app.session_interface = StoredSessions()

    with pytest.raises(
        VaultConfigError, match="VAULT_SESSION_GUARD .* StoredSessions: unset it"
    ):
        FlaskVault(app)


def test_sessions_derived_from_the_guarded_ones_are_kept(
    vault_mount: VaultMount,
) -> None:
    """As the error for another kind advises."""

    class Own(GuardedSessionInterface):
        salt = "my-salt"

    vault_mount.write("flask", {"key": "first key"})
    app = new_app(
        vault_mount.config(),
        VAULT_SESSION_GUARD=True,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    FlaskVault(app)
    app.session_interface = Own(state_of(app))
    add_views(app)
    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["1", "2"]
