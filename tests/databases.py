"""A database server of a test's own, in a temporary folder."""

from __future__ import annotations

import abc
import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

import sqlalchemy as sa

from flask_vault.testing.ports import lease_ports

D = t.TypeVar("D", bound="Database")

#: Neither server, nor its tools, should run as root.
UNPRIVILEGED = "nobody"


def as_somebody() -> dict[str, t.Any]:
    """How ``subprocess`` runs what may not run as root."""
    options: dict[str, t.Any] = {"cwd": "/"}
    return {**options, "user": UNPRIVILEGED} if os.geteuid() == 0 else options


class Database(abc.ABC):
    """A server, for as long as the ``with`` block lasts.

    :param settings: of the server, by name.
    """

    host = "127.0.0.1"
    #: For a URL of SQLAlchemy.
    driver: t.ClassVar[str]
    #: The user who may do everything, and the database that there always is.
    admin: t.ClassVar[str]
    dbname: t.ClassVar[str]
    #: What asks it to end now, whoever is connected.
    _stop_signal: t.ClassVar[signal.Signals]

    def __init__(self, **settings: str) -> None:
        self.port, self._lease = lease_ports()
        self.password = f"admin-{secrets.token_hex(8)}"
        self._settings = settings
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="flask-vault-database-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: D) -> D:
        try:
            if os.geteuid() == 0:
                shutil.chown(self._folder, UNPRIVILEGED)

            self._make_data()
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
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stderr=log, stdout=log, **as_somebody()
            )

        self._wait()

    def stop(self) -> None:
        """Stop the server and end its connections. It can be started again."""
        process, self._process = self._process, None

        if process is not None:
            process.send_signal(self._stop_signal)

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
        database: str | None = None,
        driver: str | None = None,
    ) -> str:
        """The URL for SQLAlchemy, with the password in it."""
        return sa.URL.create(
            driver or self.driver,
            user,
            password,
            self.host,
            self.port,
            database or self.dbname,
        ).render_as_string(hide_password=False)

    def document(self, user: str, password: str) -> dict[str, t.Any]:
        """What is in Vault for a template of all its parts."""
        return {
            "username": user,
            "password": password,
            "host": f"{self.host}:{self.port}",
            "dbname": self.dbname,
        }

    @abc.abstractmethod
    def create_user(self, password: str, options: str = "") -> str:
        """A new user who may log in.

        :param options: more of what the statement for it takes.
        :return: its name.
        """

    @abc.abstractmethod
    def create_admin(self, password: str) -> str:
        """A new user who may change the others' passwords."""

    @abc.abstractmethod
    def set_password(self, user: str, password: str) -> None: ...

    @abc.abstractmethod
    def connections(self, user: str) -> set[int]:
        """The ids of a user's connections."""

    @abc.abstractmethod
    def end_sessions(self, user: str) -> None:
        """End all connections of a user."""

    @abc.abstractmethod
    def run(self, *statements: str) -> None:
        """Run statements as the admin."""

    def logs_in(self, user: str, password: str) -> bool:
        """Whether the server takes this password."""
        with contextlib.suppress(self._refusal()):
            self._connect(user, password).close()
            return True

        return False

    # --- parts -----------------------------------------------------------------------

    @property
    def _data(self) -> pathlib.Path:
        return self._folder / "data"

    @property
    def _log(self) -> pathlib.Path:
        return self._folder / "log"

    @abc.abstractmethod
    def _make_data(self) -> None:
        """What the server finds at its first start."""

    @abc.abstractmethod
    def _command(self) -> list[str]: ...

    @abc.abstractmethod
    def _connect(self, user: str | None = None, password: str | None = None) -> t.Any:
        """A connection of the admin, or of somebody else."""

    @abc.abstractmethod
    def _refusal(self) -> type[Exception]:
        """What the driver raises when there is no connection."""

    def _wait(self) -> None:
        deadline = time.monotonic() + 20

        while True:
            try:
                self._connect().close()
                return
            except self._refusal():
                ended = self._process is None or self._process.poll() is not None

                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"it did not start: {self.log}") from None

            time.sleep(0.02)
