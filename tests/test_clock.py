"""A host whose clock is wrong: the ages of versions are told by Vault's."""

from __future__ import annotations

import datetime
import time
import typing as t

import pytest

from flask_vault.testing.plugin import VaultMount
from tests.helpers import start_app


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_changes_no_age_and_no_read(
    days: int, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = datetime.timedelta(days=days)
    right, seconds = datetime.datetime, time.time

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> t.Any:
            return right.now(tz) + off

    monkeypatch.setattr(time, "time", lambda: seconds() + off.total_seconds())
    monkeypatch.setattr(datetime, "datetime", Wrong)
    vault_mount.write("flask", {"secret_key": "v1"})
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"},
        VAULT_HEALTH_DETAILS="always",
    )
    health = t.cast("dict[str, t.Any]", app.test_client().get("/vault/health").json)

    assert health["status"] == "pass"
    assert 0 <= health["secrets"]["SECRET_KEY"]["age_seconds"] < 60
