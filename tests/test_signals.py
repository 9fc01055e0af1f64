"""What an app is told of its secrets, and what it is not."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from flask import current_app
from flask import Flask

from flask_vault import FlaskVault
from flask_vault import secret_rotated
from flask_vault import secrets_loaded
from flask_vault import VaultError
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import BACKUP_KEY
from tests.helpers import new_app
from tests.helpers import start_app

CANARY = "canary-60d3"

SECRETS = {
    "KEY": {"ref": "flask#key", "rotate": "token"},
    "SAME_KEY": "flask#key",
    "OTHER": "flask#other",
    "URL": {"ref": "flask", "template": "redis://:{key}@db"},
    "ALL": {"ref": "flask", "cast": "json"},
    "PINNED": {"ref": "flask#key", "version": 1},
}


class Heard:
    """A receiver that notes what it was sent, and what it saw then."""

    def __init__(self) -> None:
        self.sent: list[dict[str, t.Any]] = []
        self.config: list[dict[str, t.Any]] = []
        self.senders: list[object] = []

    def __call__(self, sender: Flask, **sent: t.Any) -> None:
        assert current_app._get_current_object() is sender  # type: ignore[attr-defined]
        self.senders.append(sender)
        self.sent.append(sent)
        self.config.append({key: sender.config[key] for key in SECRETS})


@pytest.fixture
def app(vault_mount: VaultMount, tmp_path: pathlib.Path) -> Flask:
    vault_mount.write("flask", {"key": "old", "other": "o"})
    return start_app(
        vault_mount.config(),
        VAULT_SECRETS=SECRETS,
        VAULT_BACKUP_DIR=tmp_path / "backups",
        VAULT_BACKUP_KEYS=[BACKUP_KEY],
    )


def rotate(app: Flask, **options: t.Any) -> str:
    rotated = app.extensions["vault"].client.rotate_secret("flask", "key", **options)
    return str(rotated.backup)


def test_secrets_loaded_tells_what_came_from_where(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B", CANARY)
    vault_mount.write("flask", {"a": CANARY})
    app = new_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "A": "flask#a",
            "B": {"ref": "gone#b", "env": "B"},
            "C": {"ref": "gone#c", "required": False},
        },
    )
    heard: list[dict[str, t.Any]] = []

    def receiver(sender: Flask, **sent: t.Any) -> None:
        assert sender is app
        assert app.config["A"] == CANARY
        heard.append(sent)

    with secrets_loaded.connected_to(receiver, app):
        FlaskVault(app)

    assert heard == [
        {
            "keys": ("A", "B"),
            "sources": {"A": "vault", "B": "env", "C": "unset"},
        }
    ]
    assert CANARY not in repr(heard)


def test_nothing_is_sent_when_the_start_fails(vault_mount: VaultMount) -> None:
    app = new_app(vault_mount.config(), VAULT_SECRETS={"A": "gone#a"})
    heard: list[object] = []

    with secrets_loaded.connected_to(heard.append, app):
        with pytest.raises(VaultError):
            FlaskVault(app)

    assert heard == []


@pytest.mark.parametrize("in_context", [False, True])
def test_a_rotation_is_told_once_for_each_entry_that_it_changed(
    in_context: bool, app: Flask, vault_mount: VaultMount
) -> None:
    heard = Heard()

    with secret_rotated.connected_to(heard, app):
        if in_context:
            with app.app_context():
                rotate(app)
        else:
            rotate(app)

    new = vault_mount.read("flask")["key"]
    assert new != "old"
    assert heard.sent == [
        {
            "key": key,
            "path": f"{vault_mount.name}/flask",
            "field": "key",
            "version": 2,
            "previous_version": 1,
            "origin": "local",
        }
        for key in ("KEY", "SAME_KEY", "URL", "ALL")
    ]
    # The app itself, so that who connected to it is reached.
    assert all(sender is app for sender in heard.senders)
    # The whole new state, already before the first of them.
    assert (
        heard.config
        == [
            {
                "KEY": new,
                "SAME_KEY": new,
                "OTHER": "o",
                "URL": f"redis://:{new}@db",
                "ALL": {"key": new, "other": "o"},
                "PINNED": "old",
            }
        ]
        * 4
    )
    # No value, in whatever form.
    assert new not in repr(heard.sent)
    assert "old" not in repr(heard.sent)


def test_a_restoration_is_told_too(app: Flask) -> None:
    backup = rotate(app)
    heard = Heard()

    with secret_rotated.connected_to(heard, app):
        app.extensions["vault"].client.restore_secret(backup)

    assert [(s["key"], s["version"], s["previous_version"]) for s in heard.sent] == [
        ("KEY", 3, 2),
        ("SAME_KEY", 3, 2),
        ("URL", 3, 2),
        ("ALL", 3, 2),
    ]
    assert heard.config[0]["KEY"] == "old"


def test_a_rotation_that_failed_is_not_told_and_the_config_stays(
    app: Flask, vault_mount: VaultMount
) -> None:
    heard = Heard()

    with secret_rotated.connected_to(heard, app):
        with pytest.raises(VaultError):
            rotate(app, new_value="old")

    assert heard.sent == []
    assert app.config["KEY"] == "old"


def test_a_rotation_of_what_no_entry_names_is_not_told(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("elsewhere", {"key": "old"})
    heard = Heard()

    with secret_rotated.connected_to(heard, app):
        app.extensions["vault"].client.rotate_secret("elsewhere", "key")

    assert heard.sent == []


def test_a_new_value_that_does_not_serve_leaves_the_config(
    vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    vault_mount.write("web", {"port": "80"})
    secrets = {"PORT": {"ref": "web#port", "cast": "int"}}
    app = start_app(vault_mount.config(), VAULT_SECRETS=secrets)
    heard: list[object] = []

    with secret_rotated.connected_to(heard.append, app):
        app.extensions["vault"].client.rotate_secret(
            "web", "port", CANARY, backup=False
        )

    assert app.config["PORT"] == 80
    assert heard == []
    assert "PORT keeps its value" in caplog.text
    assert CANARY not in caplog.text


def test_a_receiver_that_raises_stops_nobody_and_its_text_is_not_logged(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def careless(sender: Flask, **sent: t.Any) -> None:
        value = CANARY
        raise ValueError(f"cannot use {value}")

    with (
        secret_rotated.connected_to(careless, app),
        secret_rotated.connected_to(heard, app),
    ):
        rotate(app)

    assert len(heard.sent) == 4
    errors = [r for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 4
    assert "vault-secret-rotated failed with ValueError at " in errors[0].message
    assert __file__ in errors[0].message
    assert CANARY not in caplog.text
    assert not errors[0].exc_info


def test_the_receivers_of_another_app_are_not_called(
    app: Flask, vault_mount: VaultMount
) -> None:
    other = start_app(vault_mount.config(), VAULT_SECRETS=SECRETS)
    heard = Heard()

    with secret_rotated.connected_to(heard, other):
        with other.app_context():
            rotate(app)

    assert heard.sent == []
    assert other.config["KEY"] == "old"


def test_a_rotation_through_the_proxy_of_the_current_app_is_the_apps(
    app: Flask, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """A request that rotates sees the new value for the rest of it."""
    client = app.extensions["vault"].client

    @app.post("/rotate")
    def rotation() -> list[object]:
        before = client.get_secret("flask", "key")
        client.rotate_secret("flask", "key", "new")
        return [before, client.get_secret("flask", "key"), app.config["KEY"]]

    assert app.test_client().post("/rotate").json == ["old", "new", "new"]
