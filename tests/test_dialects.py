"""The statements with which databases are told a new password."""

from __future__ import annotations

import types
import typing as t

import pytest

from flask_vault import VaultConfigError
from flask_vault.rotation.dialects import Dialect
from flask_vault.rotation.dialects import dialect_for
from flask_vault.rotation.dialects import lock_key
from flask_vault.rotation.dialects import MARIADB
from flask_vault.rotation.dialects import MYSQL
from flask_vault.rotation.dialects import POSTGRESQL
from flask_vault.rotation.rotators import Rejected


def connected_to(name: str, is_mariadb: bool = False) -> t.Any:
    dialect = types.SimpleNamespace(name=name, is_mariadb=is_mariadb)
    return types.SimpleNamespace(dialect=dialect)


def change(dialect: Dialect, user: str = "app", password: str = "pass-word") -> str:
    return dialect.fill(dialect.change_other, user, password, "10.%")


def test_postgresql_is_sent_a_verifier_and_quoted_names() -> None:
    statement = change(POSTGRESQL, 'a"; DROP ROLE b --')
    assert statement.startswith(
        'ALTER ROLE "a""; DROP ROLE b --" PASSWORD \'SCRAM-SHA-256$4096:'
    )
    assert "pass-word" not in statement
    assert statement != change(POSTGRESQL, 'a"; DROP ROLE b --'), "the salt is new"


def test_mysql_keeps_the_old_password_for_a_while() -> None:
    assert change(MYSQL) == (
        "ALTER USER 'app'@'10.%' IDENTIFIED BY 'pass-word' RETAIN CURRENT PASSWORD"
    )
    assert MYSQL.discard is not None
    assert MYSQL.fill(MYSQL.discard, "app", "", "%").endswith("DISCARD OLD PASSWORD")


def test_mariadb_is_sent_a_hash() -> None:
    """The one that the manual gives for PASSWORD('mypass')."""
    assert change(MARIADB, password="mypass") == (
        "SET PASSWORD FOR 'app'@'10.%' = '*6C8989366EAF75BB670AD8EA7A7FC1176A95CEF4'"
    )


@pytest.mark.parametrize("dialect", [MYSQL, MARIADB])
@pytest.mark.parametrize("bad", ["a'b", "a\\b", "a\nb"])
def test_what_cannot_be_quoted_safely_is_not_sent(dialect: Dialect, bad: str) -> None:
    with pytest.raises(Rejected) as caught:
        change(dialect, user=bad)

    assert bad not in str(caught.value)


@pytest.mark.parametrize("bad", ["a'b", "a\\b", "a\nb"])
def test_a_password_that_cannot_be_quoted_is_rejected_and_not_shown(bad: str) -> None:
    with pytest.raises(Rejected) as caught:
        change(MYSQL, password=bad)

    assert bad not in str(caught.value)


@pytest.mark.parametrize(
    ("connection", "name", "dialect"),
    [
        (connected_to("postgresql"), None, POSTGRESQL),
        (connected_to("mysql"), None, MYSQL),
        (connected_to("mysql", is_mariadb=True), None, MARIADB),
        (connected_to("mariadb", is_mariadb=True), None, MARIADB),
        (connected_to("cockroachdb"), "postgresql", POSTGRESQL),
    ],
)
def test_the_connection_tells_the_dialect_unless_the_entry_does(
    connection: t.Any, name: str | None, dialect: Dialect
) -> None:
    assert dialect_for(connection, name, {}) == dialect


def test_statements_of_an_entrys_own() -> None:
    own = dialect_for(
        connected_to("oracle"),
        None,
        {"change": "ALTER USER {user} IDENTIFIED BY {password}"},
    )
    assert own.fill(own.change, "app", "pass-word", "%") == (
        "ALTER USER \"app\" IDENTIFIED BY 'pass-word'"
    )
    assert own.lock is None

    with pytest.raises(VaultConfigError, match="add 'statements'"):
        dialect_for(connected_to("oracle"), None, {})

    with pytest.raises(VaultConfigError, match="'chnage'"):
        dialect_for(connected_to("mysql"), None, {"chnage": "x"})


def test_an_own_lock_leaves_the_password_encoded() -> None:
    own = dialect_for(connected_to("postgresql"), None, {"lock": "SELECT 1"})
    assert "pass-word" not in change(own)


def test_each_user_has_a_lock_of_its_own() -> None:
    assert lock_key("a") == lock_key("a") != lock_key("b")
    assert -(2**63) <= lock_key("a") < 2**63


def test_a_statement_of_ones_own_leaves_the_others_as_they_are() -> None:
    own = dialect_for(
        connected_to("mysql", is_mariadb=True),
        None,
        {"change": "SET PASSWORD = PASSWORD({password})"},
    )
    assert own.fill(own.change, "app", "pass-word", "%").endswith("('pass-word')")
    assert "pass-word" not in change(own)
