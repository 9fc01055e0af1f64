"""Passwords of databases, through SQLAlchemy.

A driver does not say reliably why a login failed. So nothing is decided by a failure:
what a database takes is known from logins that succeeded.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import secrets
import socket
import typing as t

from ..errors import RotationError
from ..errors import VaultConfigError
from . import generators
from .dialects import Dialect
from .dialects import dialect_for
from .dialects import LIMIT
from .dialects import lock_key
from .driver_errors import meaning_of
from .driver_errors import shown
from .generators import describe
from .journal import Fields
from .rotators import Job
from .rotators import NotYet
from .rotators import Rotator

if t.TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import DBAPIError

#: How each driver is told to give up; seconds.
_CONNECT_TIMEOUT: t.Final[cabc.Mapping[str, str]] = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "mariadbconnector": "connect_timeout",
    "pg8000": "timeout",
}

_PORTS: t.Final = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class DatabaseRotator(Rotator):
    """The kind ``database``.

    :param username_field: the field of the document with the user's name.
    :param users: two users that take turns; the one that is not in use is changed.
        Without them, the user changes the password that it uses.
    :param admin: the config key or reference of a URL with which to change it.
    :param url: a template for the URL, when the entry is not one.
    :param dialect: ``postgresql``, ``mysql`` or ``mariadb``, when it is not what
        SQLAlchemy says.
    :param statements: other statements than those of
        :mod:`flask_vault.rotation.dialects`.
    :param host: MySQL's host part of the user, for ``admin`` and ``users``.
    :param revoke_previous: with ``users``, close the one that went out of use.
    :param generator: makes the password.
    :param options: for the generator.
    """

    creates_elsewhere = False

    def __init__(
        self,
        *,
        username_field: str = "username",
        users: cabc.Sequence[str] = (),
        admin: str | None = None,
        url: str | None = None,
        dialect: str | None = None,
        statements: cabc.Mapping[str, str] | None = None,
        host: str = "%",
        revoke_previous: bool = False,
        generator: str = "password",
        **options: object,
    ) -> None:
        generators.check(generator, options)

        if isinstance(users, str) or (users and len(set(users)) != 2):
            raise VaultConfigError(
                "'users' of 'rotate' is a list of the two users that take turns."
            )

        self.username_field = username_field
        self.users = tuple(users)
        self.admin = admin
        self.host = host
        self.revoke_previous = revoke_previous
        self._url = url
        self._dialect = dialect
        self._statements = dict(statements or {})
        self._generate: cabc.Callable[[], str] = functools.partial(
            generators.make, generator, options
        )

    # --- the steps -------------------------------------------------------------------

    def check(self, job: Job) -> None:
        live = self._url_of(job, job.document)
        user = self._user(job.document, live)

        if self.users and user not in self.users:
            raise RotationError(
                f"{job.label}: the document's user {user!r} is none of the 'users' of"
                f" 'rotate', {', '.join(self.users)}."
            )

        self._refuse_trust(job, live)

        if self.admin is not None:
            admin = self._admin_url(job)

            # Else the admin of one database would change the password of another.
            if (admin.host, admin.port) != (live.host, live.port):
                raise RotationError(
                    f"{job.label}: 'admin' ({self.admin!r}) leads to another server"
                    " than the entry itself. Nothing was changed."
                )

            self._require_login(job, admin, f"'admin' ({self.admin!r})")

        if self.admin is None or self.users:
            self._require_login(job, live, f"{job.field!r} of the document")

    def create(self, job: Job) -> Fields:
        pending: dict[str, t.Any] = {job.field: self._generate()}

        if self.users:
            user = job.document[self.username_field]
            (other,) = set(self.users) - {user}
            pending[self.username_field] = other

        return pending

    def apply(self, job: Job) -> None:
        target = self._url_of(job, {**job.document, **(job.pending or {})})

        if self._logs_in(target):
            return

        with self._locked(job, target) as (connection, dialect):
            # Whoever had the lock before may have done it.
            if self._logs_in(target):
                return

            self._change(connection, dialect, target, str(target.password))
            job.reach("before commit")

        job.reach("committed")

    def verify(self, job: Job) -> None:
        target = self._url_of(job, {**job.document, **(job.pending or {})})
        self._refuse_trust(job, target)

        if not self._logs_in(target):
            raise NotYet(
                f"the database does not take the new password of {target.username!r}"
            )

    def revoke(self, job: Job) -> None:
        live = self._url_of(job, job.document)
        previous = self._url_of(job, {**job.document, **(job.previous or {})})

        # The server may be another one by now, a replica that had not learned of it.
        if not self._logs_in(live):
            with self._locked(job, live, previous) as (connection, dialect):
                self._change(connection, dialect, live, str(live.password))

            self.verify(job)

        if self.users:
            if self.revoke_previous or job.compromised:
                with self._locked(job, previous) as (connection, dialect):
                    nobody_knows = secrets.token_urlsafe(32)
                    self._change(connection, dialect, previous, nobody_knows)

            return

        # Where there is no second password, the old one has ended already.
        if (
            live.get_backend_name() == "postgresql"
            and "discard" not in self._statements
        ):
            return

        with self._locked(job, live) as (connection, dialect):
            own = self.admin is None
            statement = dialect.discard if own else dialect.discard_other

            if statement is not None:
                self._execute(
                    connection,
                    dialect.fill(statement, str(live.username), "", self.host),
                )

    def abort(self, job: Job) -> bool:
        live = self._url_of(job, job.document)
        target = self._url_of(job, {**job.document, **(job.pending or {})})

        if self._logs_in(target):
            return False

        with self._locked(job, target):
            # Twice: a single failure may have other reasons.
            return (
                self._logs_in(live)
                and not self._logs_in(target)
                and not self._logs_in(target)
            )

    # --- parts -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(
        self, job: Job, target: URL, login: URL | None = None
    ) -> cabc.Iterator[tuple[Connection, Dialect]]:
        """A transaction of the one rotator that may change a user now.

        :param target: what is to log in afterwards.
        :param login: what does now, when it is not that of the document.
        """
        url, who = self._changer(job)

        if login is not None and self.admin is None:
            url, who = login, "the previous one"

        with _connected(url) as connection:
            if connection is None:
                self._require_reachable(job, url)

                # Another process may have changed it since we looked.
                if self._logs_in(target):
                    raise NotYet("another process has changed the password")

                raise RotationError(
                    f"{job.label}: the database takes neither the new password nor"
                    f" {who}, so somebody else has changed it. Nothing was changed. Set"
                    " the database to the password of the document, or the document to"
                    " that of the database, and run the command again."
                )

            from sqlalchemy.exc import DBAPIError

            failure: NotYet | None = None
            job.reach("connected")
            dialect = dialect_for(connection, self._dialect, self._statements)

            try:
                for statement in dialect.limits:
                    connection.exec_driver_sql(statement)

                if dialect.lock is not None:
                    key = lock_key(str(target.username))
                    lock = dialect.lock.replace("{key}", str(key))

                    if connection.exec_driver_sql(lock).scalar() != 1:
                        raise NotYet("another process holds the database's lock")
            except DBAPIError as error:
                failure = NotYet(f"the lock is not to be had: {shown(error)}")

            if failure is not None:
                raise failure

            # Only now: who waited for the lock may have been overtaken meanwhile.
            job.claim()
            job.reach("fenced")
            yield connection, dialect

            try:
                connection.commit()
            except DBAPIError as error:
                failure = NotYet(f"the end is not known: {shown(error)}")

            if failure is not None:
                raise failure

    def _changer(self, job: Job) -> tuple[URL, str]:
        """With what to connect, and what that is."""
        if self.admin is not None:
            return self._admin_url(job), f"'admin' ({self.admin!r})"

        return self._url_of(job, job.document), "that of the document"

    def _change(
        self, connection: Connection, dialect: Dialect, target: URL, password: str
    ) -> None:
        own = self.admin is None and not self.users
        statement = dialect.change if own else dialect.change_other

        # The one that is not in use needs no second password.
        if self.users:
            statement = statement.removesuffix(" RETAIN CURRENT PASSWORD")

        self._execute(
            connection,
            dialect.fill(statement, str(target.username), password, self.host),
        )

    def _execute(self, connection: Connection, statement: str) -> None:
        from sqlalchemy.exc import DBAPIError

        # Not through SQLAlchemy, which logs statements when it is told to.
        cursor = connection.connection.cursor()
        driver_error = connection.dialect.loaded_dbapi.Error
        failure: Exception

        try:
            cursor.execute(statement)
        except driver_error as error:
            wrapped = DBAPIError.instance(
                None, None, error, driver_error, dialect=connection.dialect
            )
            failure = meaning_of(t.cast("DBAPIError", wrapped))
        else:
            return
        finally:
            with contextlib.suppress(driver_error):
                cursor.close()

        # Out here, since the driver's text may quote the statement.
        raise failure

    def _url_of(self, job: Job, data: Fields) -> URL:
        from ..templates import Template

        if self._url is None:
            text = job.render(data)
        else:
            text = Template.parse(self._url).render(
                lambda name: str(data.get(name, ""))
            )

        return _parse(text, job.label)

    def _admin_url(self, job: Job) -> URL:
        return _parse(job.lookup(t.cast(str, self.admin)), f"'admin' ({self.admin!r})")

    def _user(self, data: Fields, url: URL) -> str:
        return str(data.get(self.username_field) or url.username)

    def _logs_in(self, url: URL) -> bool:
        from sqlalchemy.exc import DBAPIError

        engine = _engine(url)
        arguments, options = engine.dialect.create_connect_args(url)
        driver_error = engine.dialect.loaded_dbapi.Error

        try:
            # Not through the engine, which asks the server what it is like.
            login = engine.dialect.connect(*arguments, **options, **_limit(url))
        except (driver_error, DBAPIError):
            return False

        with contextlib.suppress(driver_error):
            login.close()

        return True

    def _require_login(self, job: Job, url: URL, what: str) -> None:
        if self._logs_in(url):
            return

        self._require_reachable(job, url)
        raise RotationError(
            f"{job.label}: the database does not take {what}, so nothing was changed:"
            " correct it first."
        )

    def _require_reachable(self, job: Job, url: URL) -> None:
        port = url.port or _PORTS.get(url.get_backend_name())

        # A socket in the file system, say.
        if url.host is None or port is None:
            return

        try:
            socket.create_connection((url.host, port), LIMIT).close()
        except OSError as error:
            raise NotYet(
                f"the database at {url.host}:{port} does not answer"
                f" ({type(error).__name__})"
            ) from None

    def _refuse_trust(self, job: Job, url: URL) -> None:
        if self._logs_in(url.set(password=secrets.token_urlsafe(24))):
            raise RotationError(
                f"{job.label}: the database takes any password of {url.username!r}"
                " ('trust' or 'peer' in pg_hba.conf, say), so no login proves anything."
                " Have it ask for the password."
            )


@contextlib.contextmanager
def _connected(url: URL) -> cabc.Iterator[Connection | None]:
    """A connection of its own, or ``None`` when there is none to be had."""
    from sqlalchemy.exc import DBAPIError

    engine = _engine(url)
    connection: Connection | None = None

    with contextlib.suppress(DBAPIError):
        connection = engine.connect()

    try:
        yield connection
    finally:
        if connection is not None:
            # It may be dead, and is not used again in any case.
            with contextlib.suppress(Exception):
                connection.close()

        engine.dispose()


def _engine(url: URL) -> Engine:
    """An engine that keeps no connections and shows no parameters."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        return create_engine(
            url, poolclass=NullPool, hide_parameters=True, connect_args=_limit(url)
        )
    except (ImportError, SQLAlchemyError) as error:
        problem = describe(error)

    raise VaultConfigError(
        f"The driver for {url.drivername!r} cannot be used: {problem}. Install it where"
        " the rotation runs, or give another URL with 'url' in 'rotate'."
    )


def _limit(url: URL) -> dict[str, int]:
    """How the driver is told not to try for ever."""
    name = _CONNECT_TIMEOUT.get(url.get_driver_name())
    return {} if name is None else {name: LIMIT}


def _parse(text: str, what: str) -> URL:
    problem = "SQLAlchemy is not installed: install 'flask-vault[sqlalchemy]'"

    try:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        pass
    else:
        try:
            return make_url(text)
        except (ArgumentError, ValueError):
            problem = (
                "it is no database URL: give the entry a 'template', or 'url' in"
                " 'rotate', such as"
                " 'postgresql+psycopg://{username}:{password}@{host}/{dbname}'"
            )

    # Outside of the except block: the text holds the password.
    raise VaultConfigError(f"{what}: {problem}.")
