"""The third level: the day on which Vault is down, with a proxy that misbehaves."""

from __future__ import annotations

import pytest
from conftest import MakeShop
from flask import Flask
from shop import vault

from flask_vault import VaultUnavailableError
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount


@pytest.fixture
def shop(make_shop: MakeShop, vault_proxy: FaultProxy) -> Flask:
    """A shop that reaches Vault through the proxy."""
    return make_shop(VAULT_ADDR=vault_proxy.address, VAULT_READ_TIMEOUT=0.5)


def test_an_outage_is_for_operators_and_not_for_customers(
    shop: Flask, vault_proxy: FaultProxy
) -> None:
    client = shop.test_client()
    vault_proxy.cut()
    vault.refresh(shop)

    assert client.post("/charge").text.endswith("1")
    answer = client.get("/vault/health")
    # The load balancer keeps this host: the others have no Vault either.
    assert (answer.status_code, answer.json) == (200, {"status": "warn"})

    vault_proxy.heal()
    vault.refresh(shop)
    assert client.get("/vault/health").json == {"status": "pass"}


def test_no_request_of_a_customer_waits_for_vault(
    shop: Flask, vault_proxy: FaultProxy
) -> None:
    vault_proxy.reset()
    vault_proxy.hang()

    assert shop.test_client().post("/charge").status_code == 200
    assert vault_proxy.count == 0


def test_a_host_does_not_start_without_its_secrets(
    make_shop: MakeShop, vault_proxy: FaultProxy
) -> None:
    vault_proxy.cut()

    with pytest.raises(VaultUnavailableError):
        make_shop(VAULT_ADDR=vault_proxy.address)


def test_the_page_of_a_load_balancer_changes_nothing(
    shop: Flask, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(200, "<html>Down for maintenance</html>")
    report = vault.refresh(shop)

    assert report.errors
    assert shop.config["STRIPE_API_KEY"] == "sk_test_1"


def test_a_write_whose_answer_is_lost_is_done_once(
    shop: Flask, documents: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.drop_reply(match=lambda request: request.method == "POST")

    with shop.app_context():
        version = vault.client.set_secret("stripe", {"api_key": "sk_test_2"})

    assert version == 2
    assert documents.read("stripe") == {"api_key": "sk_test_2"}
