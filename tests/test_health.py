"""``/vault/health``: for load balancers, answered from memory."""

from __future__ import annotations

import typing as t

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_vault import FlaskVault
from flask_vault import VaultConfigError
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import Clock
from tests.helpers import new_app
from tests.helpers import refused
from tests.helpers import start_app

CANARY = "canary-e7f1"
TOKEN = "operator-token"
SECRETS = {"KEY": "flask#key", "OPTIONAL": {"ref": "gone#x", "env": "OPTIONAL"}}


def ask(app: Flask, path: str = "/vault/health", **options: t.Any) -> TestResponse:
    return app.test_client().get(path, **options)


def details_of(app: Flask) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", ask(app).json)


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("flask", {"key": CANARY})
    vault_mount.write("flask", {"key": CANARY})
    return vault_mount


@pytest.fixture
def app(mount: VaultMount, vault_proxy: FaultProxy) -> Flask:
    return start_app(
        mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_SECRETS={"KEY": "flask#key"},
    )


@pytest.fixture
def stale_app(app: Flask, vault_proxy: FaultProxy) -> Flask:
    """It serves what it has, since Vault is gone."""
    clock = Clock()
    client = app.extensions["vault"].client
    client._store._clock = clock
    client.get_secret("flask", "key", use_cache=False)
    clock.advance(301)
    vault_proxy.cut()
    assert client.get_secret("flask", "key") == CANARY
    return app


@pytest.mark.parametrize("path", ["/vault/health", "/vault/health/live"])
def test_an_app_that_is_well(path: str, app: Flask) -> None:
    answer = ask(app, path)

    assert answer.status_code == 200
    assert answer.json == {"status": "pass"}
    assert answer.mimetype == "application/health+json"
    assert answer.headers["Cache-Control"] == "no-store"

    head = app.test_client().head(path)
    assert (head.status_code, head.data) == (200, b"")
    assert head.mimetype == "application/health+json"


def test_it_asks_nobody(app: Flask, vault_proxy: FaultProxy) -> None:
    app.config["VAULT_HEALTH_DETAILS"] = "always"
    vault_proxy.reset()
    vault_proxy.hang()

    for path in ("/vault/health", "/vault/health/live") * 3:
        assert ask(app, path).status_code == 200

    assert vault_proxy.count == vault_proxy.connections == 0


def test_a_stale_app_is_served_with_a_warning(stale_app: Flask) -> None:
    """A load balancer that empties its pool makes one outage into two."""
    answer = ask(stale_app)

    assert answer.status_code == 200
    assert answer.json == {"status": "warn"}
    assert ask(stale_app, "/vault/health/live").json == {"status": "pass"}


def test_what_env_serves_is_a_warning(
    mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIONAL", CANARY)
    app = start_app(mount.config(VAULT_HEALTH_DETAILS="always"), VAULT_SECRETS=SECRETS)
    details = details_of(app)

    assert ask(app).status_code == 200
    assert details["status"] == "warn"
    assert details["secrets"]["OPTIONAL"] == {
        "source": "env",
        "version": None,
        "age_seconds": None,
        "error": "SecretNotFoundError",
    }


def test_an_app_that_never_loaded_fails(app: Flask) -> None:
    app.extensions["vault"].loaded = False

    assert ask(app).status_code == 503
    assert ask(app).json == {"status": "fail"}
    # The process answers, and restarting it would not help.
    assert ask(app, "/vault/health/live").status_code == 200


def test_details_are_for_nobody_by_default(app: Flask) -> None:
    given = {"Authorization": "Bearer None"}

    assert ask(app).json == ask(app, headers=given).json == {"status": "pass"}


def test_details_for_who_has_the_token(mount: VaultMount) -> None:
    app = start_app(
        mount.config(VAULT_HEALTH_DETAILS="token", VAULT_HEALTH_TOKEN=TOKEN),
        VAULT_SECRETS={"KEY": "flask#key"},
    )

    def given(header: str) -> t.Any:
        return ask(app, headers={"Authorization": header}).json

    for wrong in ("", "Bearer", "Bearer \u00e9", f"Basic {TOKEN}", TOKEN):
        assert given(wrong) == {"status": "pass"}

    details = given(f"Bearer {TOKEN}")
    age = details["secrets"]["KEY"].pop("age_seconds")
    assert 0 <= age < 60
    assert details.pop("refresh")["errors"] == []
    assert details == {
        "status": "pass",
        "enabled": True,
        "loaded": True,
        "stale": False,
        "secrets": {"KEY": {"source": "vault", "version": 2, "error": None}},
    }
    assert given(f"bearer {TOKEN}")["status"] == "pass"
    assert "secrets" in given(f"bearer {TOKEN}")


def test_a_token_that_no_header_can_hold_is_told_at_the_start(
    mount: VaultMount,
) -> None:
    app = new_app(
        mount.config(VAULT_HEALTH_DETAILS="token", VAULT_HEALTH_TOKEN="cl\u00e9"),
    )

    with refused(app, VaultConfigError) as caught:
        FlaskVault(app)

    assert "VAULT_HEALTH_TOKEN" in str(caught.value)
    assert "cl\u00e9" not in str(caught.value)


def test_details_tell_no_value_no_address_and_no_path(
    mount: VaultMount, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIONAL", CANARY)
    app = start_app(
        mount.config(VAULT_ADDR=vault_proxy.address, VAULT_HEALTH_DETAILS="always"),
        VAULT_SECRETS=SECRETS,
    )
    body = ask(app).get_data(as_text=True)

    for hidden in (CANARY, mount.name, "127.0.0.1", mount.token, "gone", "flask"):
        assert hidden not in body


def test_after_a_rotation_the_version_is_the_new_one(mount: VaultMount) -> None:
    app = start_app(
        mount.config(VAULT_HEALTH_DETAILS="always"),
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    app.extensions["vault"].client.rotate_secret("flask", "key", backup=False)

    assert details_of(app)["secrets"]["KEY"]["version"] == 3


def test_without_vault_on_purpose_all_is_well() -> None:
    app = start_app(
        {"VAULT_ENABLED": False, "VAULT_HEALTH_DETAILS": "always"},
        VAULT_SECRETS={"KEY": {"ref": "flask#key", "default": "d"}},
    )
    answer = ask(app)

    assert answer.status_code == 200
    assert answer.json == {
        "status": "pass",
        "enabled": False,
        "loaded": True,
        "stale": False,
        "refresh": None,
        "secrets": {
            "KEY": {
                "source": "default",
                "version": None,
                "age_seconds": None,
                "error": None,
            }
        },
    }


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("/ops/vault/", "/ops/vault/health"), ("/", "/health")],
)
def test_prefix_and_name_are_the_apps_choice(
    prefix: str, path: str, mount: VaultMount
) -> None:
    app = new_app({})
    app.add_url_rule("/vault/health", "own", lambda: "the app's own")
    app.config.from_mapping(
        mount.config(
            VAULT_HEALTH_URL_PREFIX=prefix,
            VAULT_HEALTH_BLUEPRINT="ops_vault",
            VAULT_SECRETS={"KEY": "flask#key"},
        )
    )
    FlaskVault(app)

    assert ask(app, path).json == {"status": "pass"}
    assert ask(app).text == "the app's own"
    assert "ops_vault.health" in app.view_functions


def test_it_can_be_left_out(mount: VaultMount) -> None:
    app = start_app(
        mount.config(VAULT_HEALTH=False), VAULT_SECRETS={"KEY": "flask#key"}
    )

    assert ask(app).status_code == 404
    assert "vault" not in app.blueprints
