"""Remember-me cookies that are in a browser while a key is rotated."""

from __future__ import annotations

import typing as t

import flask_login  # type: ignore[import-untyped]
import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_login import current_user
from flask_login import login_user
from flask_login import UserMixin

from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.integrations.login import login_remembered
from flask_vault.integrations.login import LoginManager
from flask_vault.testing.plugin import VaultMount
from tests.helpers import start_app

# Flask-Login 0.6.3 makes its expiry with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")

RING: dict[str, object] = {"ref": "flask#secret_key", "keyring": True}


class User(UserMixin):  # type: ignore[misc]
    id = "ada"


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("flask", {"secret_key": "flask-1"})
    return vault_mount


def new_app(
    mount: VaultMount, manager: flask_login.LoginManager | None = None, **extra: t.Any
) -> Flask:
    extra.setdefault("VAULT_SECRETS", {"SECRET_KEY": RING})
    extra.setdefault("VAULT_PROPAGATION_WINDOW", 0)
    app = start_app(mount.config(VAULT_REFRESH_MODE="off"), **extra)
    manager = LoginManager() if manager is None else manager
    manager.init_app(app)

    @manager.user_loader  # type: ignore[untyped-decorator]
    def load(user_id: str) -> User | None:
        return User() if user_id == "ada" else None

    @app.post("/login")
    def login() -> str:
        return str(login_user(User(), remember=True))

    @app.get("/")
    def who() -> str:
        remembered = login_remembered()
        name = current_user.id if current_user.is_authenticated else "nobody"
        return f"{name} {remembered}"

    return app


def logged_in(app: Flask) -> FlaskClient:
    """A browser that was closed and opened again: the long-lived cookie is left."""
    client = app.test_client()
    client.post("/login")
    client.delete_cookie("session")
    return client


def rotate(mount: VaultMount, app: Flask, number: int) -> None:
    mount.write("flask", {"secret_key": f"flask-{number}"})
    state_of(app).refresh()


def test_a_cookie_from_before_a_rotation_is_accepted(mount: VaultMount) -> None:
    app = new_app(mount)
    client = logged_in(app)
    rotate(mount, app, 2)
    rotate(mount, app, 3)
    assert app.config["SECRET_KEY"] == "flask-3"
    assert client.get("/").text == "ada True"


def test_without_the_integration_the_user_is_logged_out(mount: VaultMount) -> None:
    app = new_app(mount, flask_login.LoginManager())
    client = logged_in(app)
    assert client.get("/").text == "ada True"
    client.delete_cookie("session")
    rotate(mount, app, 2)
    assert client.get("/").text.startswith("nobody")


def test_new_cookies_are_signed_with_the_key_that_signs(mount: VaultMount) -> None:
    app = new_app(mount, VAULT_PROPAGATION_WINDOW=600)
    rotate(mount, app, 2)
    cookie = logged_in(app).get_cookie("remember_token")
    assert cookie is not None
    assert flask_login.decode_cookie(cookie.decoded_value, key="flask-1") == "ada"


def test_a_cookie_of_a_key_that_does_not_sign_yet_is_accepted(
    mount: VaultMount,
) -> None:
    app = new_app(mount, VAULT_PROPAGATION_WINDOW=600)
    rotate(mount, app, 2)
    client = app.test_client()
    cookie = flask_login.encode_cookie("ada", key="flask-2")
    client.set_cookie("remember_token", cookie)
    assert client.get("/").text == "ada True"


def test_a_visit_may_sign_the_cookie_anew(mount: VaultMount) -> None:
    app = new_app(mount, REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)
    client = logged_in(app)
    rotate(mount, app, 2)
    client.get("/")
    cookie = client.get_cookie("remember_token")
    assert cookie is not None
    assert flask_login.decode_cookie(cookie.decoded_value, key="flask-2") == "ada"


@pytest.mark.parametrize("cookie", ["ada|0", "ada", "", "|", "ada|" + 128 * "0"])
def test_a_cookie_of_another_key_is_nobodys(mount: VaultMount, cookie: str) -> None:
    client = new_app(mount).test_client()
    client.set_cookie("remember_token", cookie)
    assert client.get("/").text == "nobody False"


def test_a_key_without_a_ring_is_refused(mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="SECRET_KEY"):
        new_app(mount, VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"})


def test_without_vault_logins_are_as_ever(mount: VaultMount) -> None:
    app = new_app(mount, VAULT_ENABLED=False, SECRET_KEY="test")
    assert logged_in(app).get("/").text == "ada True"
