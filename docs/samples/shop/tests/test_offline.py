"""The first level: what the shop does, whatever its secrets are. It needs no server."""

from __future__ import annotations

import pytest
from flask import Flask
from shop import create_app


def test_visits_are_counted(offline_shop: Flask) -> None:
    client = offline_shop.test_client()
    assert client.get("/").text == "visit 1"
    assert client.get("/").text == "visit 2"


def test_a_charge_uses_the_configured_key(offline_shop: Flask) -> None:
    answer = offline_shop.test_client().post("/charge")
    assert answer.text == "charged with the key that ends in 0"


def test_a_developer_may_set_the_key_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_5")
    shop = create_app({"VAULT_ENABLED": False, "SECRET_KEY": "test"})
    assert shop.config["STRIPE_API_KEY"] == "sk_test_5"


def test_the_health_is_good_without_vault(offline_shop: Flask) -> None:
    assert offline_shop.test_client().get("/vault/health").json == {"status": "pass"}
