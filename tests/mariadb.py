"""A real MariaDB server, where the system has one."""

from __future__ import annotations

import collections.abc as cabc
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import typing as t

import pymysql  # type: ignore[import-untyped]
import pytest

from tests.databases import as_somebody
from tests.databases import Database

#: Where systems keep the server, which is not on everybody's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/bin"])


class MariaDB(Database):
    """A server in a temporary folder, for as long as the ``with`` block lasts.

    :param settings: options of ``mariadbd``, such as ``max_password_errors="9"``.
    """

    driver = "mysql+pymysql"
    admin = "admin"
    dbname = "mysql"
    _stop_signal = signal.SIGTERM

    @property
    def statements(self) -> str:
        """All statements that were sent so far, as the server logs them."""
        return self._statements.read_text("utf-8", "replace")

    def create_user(self, password: str, options: str = "") -> str:
        name = f"app_{secrets.token_hex(6)}"
        self.run(
            f"CREATE USER {name}@'%' IDENTIFIED BY '{password}' {options}",
            f"GRANT SELECT ON mysql.* TO {name}@'%'",
        )
        return name

    def create_admin(self, password: str) -> str:
        name = self.create_user(password)
        self.run(f"GRANT ALL ON *.* TO {name}@'%'")
        return name

    def run(self, *statements: str) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def set_password(self, user: str, password: str) -> None:
        self.run(f"SET PASSWORD FOR {user}@'%' = PASSWORD('{password}')")

    def connections(self, user: str) -> set[int]:
        query = "SELECT id FROM information_schema.processlist WHERE user = %s"

        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(query, (user,))
            return {row[0] for row in cursor.fetchall()}

    def end_sessions(self, user: str) -> None:
        self.run(f"KILL USER {user}")

    # --- parts -----------------------------------------------------------------------

    @property
    def _statements(self) -> pathlib.Path:
        return self._folder / "statements"

    def _make_data(self) -> None:
        subprocess.run(
            [
                _required("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            **as_somebody(),
        )
        # Root may only come from "localhost", which an address is not.
        (self._folder / "init.sql").write_text(
            f"CREATE OR REPLACE USER {self.admin}@'%'"
            f" IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO {self.admin}@'%' WITH GRANT OPTION;\n"
        )

    def _command(self) -> list[str]:
        settings = {
            "datadir": os.fspath(self._data),
            "port": str(self.port),
            "bind-address": self.host,
            "socket": os.fspath(self._folder / "socket"),
            "init-file": os.fspath(self._folder / "init.sql"),
            "skip-name-resolve": "1",
            "general-log": "1",
            "general-log-file": os.fspath(self._statements),
            # Nobody needs the data after a crash of the machine.
            "innodb-flush-log-at-trx-commit": "0",
            "innodb-buffer-pool-size": "16M",
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [_required("mariadbd"), "--no-defaults", *options]

    def _connect(self, user: str | None = None, password: str | None = None) -> t.Any:
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=user or self.admin,
            password=self.password if password is None else password,
            database=self.dbname,
            connect_timeout=5,
        )

    def _refusal(self) -> type[Exception]:
        return t.cast(type[Exception], pymysql.OperationalError)


def installed() -> bool:
    """Whether there is a server to start."""
    return all(_find(name) for name in ("mariadbd", "mariadb-install-db"))


def _find(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def _required(name: str) -> str:
    program = _find(name)
    assert program is not None, f"{name} is not installed"
    return program


@pytest.fixture(scope="session")
def mariadb() -> cabc.Iterator[MariaDB]:
    """A server for all tests of the session; each makes users of its own."""
    if not installed():
        pytest.skip("MariaDB is not installed: it is in Debian's mariadb-server-core")

    with MariaDB() as server:
        yield server
