"""Passwords of a MariaDB server. What it has in common with PostgreSQL under several
processes is in ``test_rotation_races.py``."""

from __future__ import annotations

import pathlib

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_vault import RotationError
from flask_vault import UnfinishedRotationError
from flask_vault.integrations import sqlalchemy as integration
from flask_vault.rotation.steps import seam
from flask_vault.testing.plugin import VaultMount
from tests.helpers import start_app
from tests.mariadb import MariaDB
from tests.test_database_rotation import admin
from tests.test_database_rotation import alternating
from tests.test_database_rotation import FIRST
from tests.test_database_rotation import open_shop
from tests.test_database_rotation import Shop


@pytest.fixture
def shop(vault_mount: VaultMount, mariadb: MariaDB, tmp_path: pathlib.Path) -> Shop:
    return open_shop(vault_mount, mariadb, tmp_path)


def test_a_user_changes_its_own_password(shop: Shop) -> None:
    user = shop.document()["username"]
    shop.client().rotate_secret("database", "password")
    assert shop.document()["password"] != FIRST
    assert shop.live_logs_in()
    assert not shop.server.logs_in(user, FIRST)


def test_an_administrator_changes_it_also_when_the_document_is_wrong(
    shop: Shop,
) -> None:
    admin(shop)
    shop.mount.write("database", {**shop.document(), "password": "drifted"})
    shop.client().rotate_secret("database", "password")
    assert shop.live_logs_in()


def test_two_users_take_turns_and_the_one_in_use_is_never_touched(shop: Shop) -> None:
    first, second = alternating(shop)
    shop.client().rotate_secret("database", "password")
    assert shop.document()["username"] == second
    assert shop.live_logs_in()
    assert shop.server.logs_in(first, FIRST)


def test_the_servers_log_of_statements_holds_no_password(
    shop: Shop, mariadb: MariaDB
) -> None:
    shop.client().rotate_secret("database", "password")
    assert shop.document()["password"] not in mariadb.statements
    assert "SET PASSWORD = '*" in mariadb.statements


def test_a_right_that_is_missing_is_not_the_values_fault(shop: Shop) -> None:
    alternating(shop)
    del shop.rotate["admin"]
    result = shop.run()
    assert type(result.error) is RotationError
    assert "grant the right" in str(result.error)
    assert result.state == "APPLYING"


def test_a_server_that_takes_no_verifier_is_sent_the_password(
    shop: Shop, mariadb: MariaDB
) -> None:
    """One that judges passwords; here, one that is read-only says the same."""
    mariadb.run("SET GLOBAL read_only = 1")

    try:
        result = shop.run()
    finally:
        mariadb.run("SET GLOBAL read_only = 0")

    assert type(result.error) is RotationError
    assert "code 1290" in str(result.error)
    assert result.state == "APPLYING"
    shop.rotate["statements"] = {"change": "SET PASSWORD = PASSWORD({password})"}
    assert shop.run().operation == result.operation
    assert shop.live_logs_in()


def test_a_session_that_ends_after_the_change_is_found_out(shop: Shop) -> None:
    """There is no transaction around it: the new password counts at once."""
    user = shop.document()["username"]
    ended: list[str] = []

    def end(step: str) -> None:
        if step == "before commit" and not ended:
            ended.append(step)
            shop.server.end_sessions(user)

    with seam(end):
        assert shop.run(verify_for=10).state == "done"

    assert ended
    assert shop.live_logs_in()


def test_a_server_that_goes_away_meanwhile(
    vault_mount: VaultMount, mariadb: MariaDB, tmp_path: pathlib.Path
) -> None:
    """The fixture is only here to skip the test where there is no server."""
    with MariaDB() as server:
        shop = open_shop(vault_mount, server, tmp_path)

        with seam(lambda step: server.stop() if step == "applying" else None):
            result = shop.run()

        assert isinstance(result.error, UnfinishedRotationError)
        server.start()
        assert shop.run().operation == result.operation
        assert shop.live_logs_in()


def test_an_engine_tries_the_next_password_when_one_is_refused(shop: Shop) -> None:
    """By the code of the driver, PyMySQL: 1045."""
    entry = {"ref": "database", "template": shop.template}
    key = integration.DEFAULT_KEY
    config = shop.mount.config(VAULT_REFRESH_MODE="off", VAULT_SECRETS={key: entry})
    app = start_app(config)
    db = SQLAlchemy(app)
    integration.init_app(app, db)

    with app.app_context():
        shop.client().rotate_secret("database", "password")

        with db.engine.connect() as connection:
            assert connection.execute(sa.text("SELECT CURRENT_USER()")).scalar()

        db.engine.dispose()
