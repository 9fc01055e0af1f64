"""Passwords that Vault's own database engine makes and changes."""

from __future__ import annotations

import secrets
import typing as t

import pytest
from flask import Flask

from flask_vault import FlaskVault
from flask_vault import RotationError
from flask_vault import SecretNotFoundError
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault.testing import DevServer
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.postgres import Postgres


@pytest.fixture
def role(vault_server: DevServer, postgres: Postgres) -> str:
    """The reference of a role, whose user is in the database."""
    mount = f"database-{secrets.token_hex(4)}"
    api, token = Api(vault_server.address), vault_server.root_token
    admin = postgres.create_user("admin-password", "SUPERUSER")
    user = postgres.create_user("nobody-knows-this-one")
    api.call("POST", f"sys/mounts/{mount}", {"type": "database"}, token=token)
    url = "postgresql://{{username}}:{{password}}@" + f"127.0.0.1:{postgres.port}"
    api.call(
        "POST",
        f"{mount}/config/shop",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "connection_url": f"{url}/postgres",
            "username": admin,
            "password": "admin-password",
        },
        token=token,
    )
    api.call(
        "POST",
        f"{mount}/static-roles/app",
        {"db_name": "shop", "username": user, "rotation_period": 86_400},
        token=token,
    )
    return f"/{mount}/static-creds/app"


def config(mount: VaultMount, role: str, **more: object) -> dict[str, t.Any]:
    return mount.config(
        VAULT_SECRETS={
            "DATABASE_URL": {
                "ref": role,
                "template": "postgresql://{username}:{password}@db/shop",
                "rotate": {"kind": "database-static"},
            }
        },
        **more,
    )


@pytest.mark.parametrize("kv_version", [None, 2])
def test_the_credentials_read_like_a_document(
    kv_version: int | None, vault_mount: VaultMount, role: str, postgres: Postgres
) -> None:
    app = Flask("shop")
    app.config.from_mapping(config(vault_mount, role, VAULT_KV_VERSION=kv_version))
    FlaskVault(app)
    found = VaultClient.from_mapping(app.config, {}).get_secret(role)
    assert postgres.logs_in(found["username"], found["password"])
    url = f"postgresql://{found['username']}:{found['password']}@db/shop"
    assert app.config["DATABASE_URL"] == url


def test_rotation_asks_the_engine_and_reads_what_it_made(
    vault_mount: VaultMount, role: str, postgres: Postgres
) -> None:
    client = VaultClient.from_mapping(config(vault_mount, role), {})
    before = client.get_secret(role)
    rotated = client.rotate_secret(role, "password")
    after = client.get_secret(role)
    assert rotated.document.data == after
    assert postgres.logs_in(after["username"], after["password"])
    assert not postgres.logs_in(before["username"], before["password"])

    with pytest.raises(RotationError, match="makes the password itself"):
        client.rotate_secret(role, "password", "mine")


def test_a_role_that_is_not_there(vault_mount: VaultMount, role: str) -> None:
    client = VaultClient.from_mapping(config(vault_mount, role), {})

    with pytest.raises(SecretNotFoundError, match="There is no static role"):
        client.get_secret(role.replace("/app", "/other"))

    with pytest.raises(VaultConfigError, match="makes its values itself"):
        client.set_secret(role, {"password": "x"})


def test_the_reference_must_be_that_of_a_role(vault_mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="/database/static-creds/ROLE"):
        VaultClient.from_mapping(config(vault_mount, "database"), {})
