"""The second level: what the shop does with what is in Vault, on a real server."""

from __future__ import annotations

import pytest
from conftest import MakeShop
from shop import vault

from flask_vault import SecretFieldError
from flask_vault.testing.plugin import VaultMount


def test_the_config_is_filled(make_shop: MakeShop) -> None:
    shop = make_shop()
    assert shop.config["SECRET_KEY"] == "k-1"
    assert shop.config["STRIPE_API_KEY"] == "sk_test_1"


def test_a_missing_field_stops_the_start(
    make_shop: MakeShop, documents: VaultMount
) -> None:
    documents.write("stripe", {"apikey": "misspelled"})

    with pytest.raises(SecretFieldError, match="STRIPE_API_KEY"):
        make_shop()


def test_a_new_key_is_used_without_a_restart(
    make_shop: MakeShop, documents: VaultMount
) -> None:
    shop = make_shop()
    client = shop.test_client()
    documents.write("stripe", {"api_key": "sk_test_2"})
    assert client.post("/charge").text.endswith("1")

    vault.refresh(shop)
    assert client.post("/charge").text.endswith("2")


def test_a_rotation_loses_no_session(make_shop: MakeShop) -> None:
    # Without a window, a new key signs at once.
    shop = make_shop(VAULT_PROPAGATION_WINDOW=0)
    client = shop.test_client()
    assert client.get("/").text == "visit 1"

    with shop.app_context():
        vault.client.rotate_secret("flask", "secret_key", backup=False)

    vault.refresh(shop)
    assert shop.config["SECRET_KEY"] != "k-1"
    assert client.get("/").text == "visit 2"


def test_two_hosts_accept_a_new_key_before_either_signs_with_it(
    make_shop: MakeShop, documents: VaultMount
) -> None:
    """The window is there for this: they do not learn of it in the same moment."""
    one, two = make_shop(), make_shop()
    documents.write("flask", {"secret_key": "k-2"})

    for shop in (one, two):
        vault.refresh(shop)

    # Both accept the new key, and neither signs with it yet.
    assert one.config["SECRET_KEY"] == two.config["SECRET_KEY"] == "k-1"
    assert "k-2" in one.config["SECRET_KEY_FALLBACKS"]
    assert "k-2" in two.config["SECRET_KEY_FALLBACKS"]
