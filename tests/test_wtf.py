"""Forms that are open in a browser while a key is rotated."""

from __future__ import annotations

import re
import typing as t

import pytest
from flask import Flask
from flask import render_template_string
from flask.testing import FlaskClient
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]
from flask_wtf import FlaskForm

from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.integrations import wtf
from flask_vault.testing.plugin import VaultMount
from tests.helpers import start_app

RING: dict[str, object] = {"ref": "flask#secret_key", "keyring": True}
OWN_RING: dict[str, object] = {"ref": "csrf#key", "keyring": True}
TOKEN = re.compile(r'value="([^"]+)"')


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("flask", {"secret_key": "flask-1"})
    vault_mount.write("csrf", {"key": "csrf-1"})
    return vault_mount


def new_app(mount: VaultMount, *, follows: bool = True, **extra: t.Any) -> Flask:
    extra.setdefault("VAULT_SECRETS", {"SECRET_KEY": RING})
    extra.setdefault("VAULT_PROPAGATION_WINDOW", 0)
    app = start_app(mount.config(VAULT_REFRESH_MODE="off"), **extra)
    CSRFProtect(app)

    if follows:
        wtf.init_app(app)

    @app.get("/")
    def form() -> str:
        return render_template_string("{{ form.hidden_tag() }}", form=FlaskForm())

    @app.post("/")
    def submit() -> str:
        return str(FlaskForm().validate_on_submit())

    return app


def open_form(client: FlaskClient) -> str:
    found = TOKEN.search(client.get("/").text)
    assert found is not None
    return found[1]


def refresh(app: Flask) -> None:
    state_of(app).refresh()


def is_accepted(client: FlaskClient, token: str) -> bool:
    answer = client.post("/", data={"csrf_token": token})
    assert (answer.status_code, answer.text) == (200, "True") or (
        answer.status_code == 400
    )
    return answer.status_code == 200


def test_a_form_from_before_a_rotation_is_accepted(mount: VaultMount) -> None:
    app = new_app(mount)
    client = app.test_client()
    token = open_form(client)

    for number in (2, 3):
        mount.write("flask", {"secret_key": f"flask-{number}"})
        refresh(app)

    assert app.config["SECRET_KEY"] == "flask-3"
    assert is_accepted(client, token)
    assert is_accepted(client, open_form(client))


def test_without_the_integration_it_is_refused(mount: VaultMount) -> None:
    app = new_app(mount, follows=False)
    client = app.test_client()
    token = open_form(client)
    mount.write("flask", {"secret_key": "flask-2"})
    refresh(app)
    assert not is_accepted(client, token)


def test_a_form_from_a_host_that_signs_already_is_accepted(mount: VaultMount) -> None:
    ahead = new_app(mount)
    behind = new_app(mount, VAULT_PROPAGATION_WINDOW=600)
    mount.write("flask", {"secret_key": "flask-2"})
    refresh(ahead)
    refresh(behind)
    assert ahead.config["WTF_CSRF_SECRET_KEY"] == ["flask-1", "flask-2"]
    assert behind.config["WTF_CSRF_SECRET_KEY"] == ["flask-2", "flask-1"]

    client, other = ahead.test_client(), behind.test_client()
    token = open_form(client)
    cookie = client.get_cookie("session")
    assert cookie is not None
    other.set_cookie("session", cookie.value)
    assert is_accepted(other, token)


def test_csrf_may_have_a_key_of_its_own(mount: VaultMount) -> None:
    secrets = {"SECRET_KEY": RING, "WTF_CSRF_SECRET_KEY": OWN_RING}
    app = new_app(mount, VAULT_SECRETS=secrets)
    client = app.test_client()
    token = open_form(client)
    mount.write("csrf", {"key": "csrf-2"})
    refresh(app)
    assert app.config["WTF_CSRF_SECRET_KEY"] == ["csrf-1", "csrf-2"]
    assert is_accepted(client, token)


def test_a_key_that_the_config_sets_itself_is_refused(mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="remove it, or make it an entry"):
        new_app(mount, WTF_CSRF_SECRET_KEY="own")


@pytest.mark.parametrize("key", ["SECRET_KEY", "WTF_CSRF_SECRET_KEY"])
def test_a_key_without_a_ring_is_refused(mount: VaultMount, key: str) -> None:
    secrets = {"SECRET_KEY": RING, key: "flask#secret_key"}

    with pytest.raises(VaultConfigError, match=key):
        new_app(mount, VAULT_SECRETS=secrets)


def test_without_vault_forms_are_as_ever(mount: VaultMount) -> None:
    app = new_app(mount, VAULT_ENABLED=False, SECRET_KEY="test")
    client = app.test_client()
    assert is_accepted(client, open_form(client))
