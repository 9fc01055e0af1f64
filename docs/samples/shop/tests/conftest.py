from __future__ import annotations

import collections.abc as cabc
import typing as t

import pytest
from flask import Flask
from shop import create_app

from flask_vault.testing.plugin import VaultMount

MakeShop = cabc.Callable[..., Flask]


@pytest.fixture
def offline_shop() -> Flask:
    """A shop that asks no Vault. Most tests need no other."""
    return create_app(
        {
            "TESTING": True,
            "VAULT_ENABLED": False,
            "SECRET_KEY": "test",
            "STRIPE_API_KEY": "sk_test_0",
        }
    )


@pytest.fixture
def documents(vault_mount: VaultMount) -> VaultMount:
    """What the shop needs in Vault, in an engine that only this test uses."""
    vault_mount.write("flask", {"secret_key": "k-1"})
    vault_mount.write("stripe", {"api_key": "sk_test_1"})
    return vault_mount


@pytest.fixture
def make_shop(documents: VaultMount) -> MakeShop:
    """Make a shop on that engine, with more configuration if it is given."""

    def make(**config: t.Any) -> Flask:
        return create_app(documents.config(TESTING=True, **config))

    return make
