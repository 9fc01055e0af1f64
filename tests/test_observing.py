"""The seam for metrics and traces: what it tells, and that it disturbs nothing."""

from __future__ import annotations

import typing as t

import pytest

from flask_vault import FlaskVault
from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.observing import Observer
from flask_vault.observing import Observers
from flask_vault.observing import observers_of
from flask_vault.observing import operation_of
from flask_vault.testing.plugin import VaultMount
from tests.helpers import new_app

CANARY = "canary-0b6a"


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("post", "auth/approle/login", "login"),
        ("post", "auth/userpass/login/ada", "login"),
        ("post", "auth/token/renew-self", "renew"),
        ("get", "auth/token/lookup-self", "other"),
        ("get", "sys/internal/ui/mounts/secret/data", "other"),
        ("get", "secret/data/flask", "read"),
        ("get", "secret/data/team/metadata/flask", "read"),
        ("get", "secret/data/metadata", "read"),
        ("get", "kv1/flask", "read"),
        ("get", "kv1/metadata", "read"),
        ("get", "team/secret/metadata/flask", "metadata"),
        ("list", "secret/metadata/flask", "metadata"),
        ("list", "kv1/flask", "metadata"),
        ("post", "secret/data/flask", "write"),
        ("put", "secret/metadata/flask", "write"),
        ("delete", "kv1/flask", "write"),
    ],
)
def test_an_operation_is_told_by_its_path(
    method: str, path: str, operation: str
) -> None:
    assert operation_of(method, f"/v1/{path}") == operation


def fail(*args: object) -> t.NoReturn:
    raise RuntimeError(CANARY)


def test_an_observer_that_raises_disturbs_nothing(
    vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    vault_mount.write("a", {"a": "old"})
    app = new_app(vault_mount.config(TESTING=True), VAULT_SECRETS={"A": "a#a"})
    broken = Observer()

    for told in ("requested", "refreshed", "changed", "begin"):
        setattr(broken, told, fail)

    observers_of(app.extensions).add(broken)
    vault = FlaskVault(app)
    vault_mount.write("a", {"a": "new"})
    assert vault.refresh(app).changed == ("A",)
    assert "What observes Flask-Vault failed with RuntimeError at" in caplog.text
    assert CANARY not in caplog.text


def test_the_observers_of_an_app_are_the_same_before_and_after_its_start(
    vault_mount: VaultMount,
) -> None:
    app = new_app(vault_mount.config(), VAULT_SECRETS={})
    before = observers_of(app.extensions)
    FlaskVault(app)
    assert observers_of(app.extensions) is before is state_of(app).observers


def test_an_app_that_nobody_observes_has_nothing_of_it() -> None:
    app = new_app({"VAULT_ADDR": "ftp://x"})

    with pytest.raises(VaultConfigError):
        FlaskVault(app)

    assert app.extensions == {}
    assert list(Observers()) == []


def test_a_start_that_failed_is_observed_again(vault_mount: VaultMount) -> None:
    class Loads(Observer):
        begun = 0

        def begin(self, name: str, facts: object) -> None:
            self.begun += name == "load"

    loads = Loads()
    app = new_app(vault_mount.config(), VAULT_SECRETS={"A": "a#a"})
    observers_of(app.extensions).add(loads)

    with pytest.raises(Exception, match="no document"):
        FlaskVault(app)

    vault_mount.write("a", {"a": CANARY})
    FlaskVault(app)
    assert loads.begun == 2
