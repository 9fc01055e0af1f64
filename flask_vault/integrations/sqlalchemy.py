"""SQLAlchemy: each new connection logs in with what Vault says at the moment.

.. code-block:: python

    vault.init_app(app)
    db.init_app(app)
    flask_vault.integrations.sqlalchemy.init_app(app, db)

The engines stay what they are. Only the arguments of new connections change, and the
connections in the pool are replaced.
"""

from __future__ import annotations

import collections.abc as cabc
import functools
import logging
import os
import time
import typing as t
import weakref

from flask import Flask

from ..errors import VaultConfigError
from ..extension import when_loaded
from ..state import AppState

try:
    import sqlalchemy as sa
    from sqlalchemy import event
    from sqlalchemy.exc import ArgumentError
except ImportError:
    raise VaultConfigError(
        "flask_vault.integrations.sqlalchemy needs SQLAlchemy: pip install"
        " 'flask-vault[sqlalchemy]'."
    ) from None

if t.TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

DEFAULT_KEY: t.Final = "SQLALCHEMY_DATABASE_URI"

#: Seconds after which no further login is tried when the driver does not tell why the
#: last one failed: it may have been a timeout, and each would take as long again.
PATIENCE: t.Final = 3.0

#: Most logins for one connection: the values that are known, and what asking brings.
MOST_LOGINS: t.Final = 4

#: MySQL's errors for a refused login: access denied, for the user or for the database.
_MYSQL_REFUSALS: t.Final = frozenset({1044, 1045, 1698})

#: Where a connection keeps which retirement of its pool came before it.
_MARK: t.Final = "flask_vault.generation"

_log = logging.getLogger("flask_vault")


class HasEngines(t.Protocol):
    """What Flask-SQLAlchemy's ``SQLAlchemy`` is used for."""

    @property
    def engines(self) -> cabc.Mapping[str | None, sa.Engine]:
        """The engines of the current app, by bind key."""


def init_app(
    app: Flask, db: HasEngines, binds: cabc.Mapping[str | None, str] | None = None
) -> None:
    """Let the engines of Flask-SQLAlchemy follow their config keys.

    :param binds: bind key to the config key of its URL, such as
        ``{None: "SQLALCHEMY_DATABASE_URI", "reports": "REPORTS_DATABASE_URI"}``. By
        default only the engine without a bind key.
    :raises VaultConfigError: when there is no such engine, or no entry for the key.
    """
    with app.app_context():
        engines = db.engines

    for bind, key in ({None: DEFAULT_KEY} if binds is None else binds).items():
        if bind not in engines:
            raise VaultConfigError(
                f"There is no engine for the bind key {bind!r}: add it to"
                f" SQLALCHEMY_BINDS with the URL from {key}, and call this after"
                " db.init_app(app)."
            )

        follow(app, engines[bind], key)


def follow(app: Flask, engine: sa.Engine, key: str = DEFAULT_KEY) -> None:
    """Let one engine follow a config key, for who uses SQLAlchemy without an extension.

    :param key: of an entry of ``VAULT_SECRETS`` that gives the engine's URL.
    :raises VaultConfigError: when there is no such entry, or the URL is for another
        driver.
    """
    # A file has no login, and the pool of one in memory is all there is of it.
    if engine.dialect.name != "sqlite":
        when_loaded(app, functools.partial(_follow, engine=engine, key=key))


def _follow(state: AppState, engine: sa.Engine, key: str) -> None:
    if not state.settings.enabled:
        return

    if key not in {entry.key for entry in state.entries}:
        raise VaultConfigError(
            f"{key} does not come from Vault, so its engine has nothing to follow: add"
            f" {key!r} to VAULT_SECRETS, or map the bind to its key with 'binds'."
        )

    drivername = engine.url.drivername

    def check(value: t.Any) -> None:
        _url(drivername, value)

    state.check_values(key, check)

    # That looks at what came from Vault. This may be the entry's 'env' or 'default'.
    try:
        check(state.app.config[key])
    except ValueError as error:
        raise VaultConfigError(f"{key} cannot be used: {error}") from None

    logins = _Logins(state, engine, key)
    event.listen(engine, "do_connect", logins.connect)
    event.listen(engine, "checkin", logins.checkin)
    state.on_change([key], logins.retire)
    # It would be the old one soon, and is in no use: the config has it.
    engine.url = _without_password(engine.url)


class _Logins:
    """How an engine connects, with which login, and when its pool is of use no more."""

    def __init__(self, state: AppState, engine: sa.Engine, key: str) -> None:
        # Flask-SQLAlchemy keeps an engine while its app lives. So must not the engine
        # keep the app alive.
        self._state = weakref.ref(state)
        self._engine = engine
        self._key = key
        self._generation = object()
        self._pid = os.getpid()
        #: The candidates of a moment, and the one of them that was let in.
        self._let_in: tuple[tuple[t.Any, ...], t.Any] = (), None
        self._parse = functools.partial(_url, engine.url.drivername)
        url = _without_password(self._parse(state.app.config[key]))
        self._built_with = engine.dialect.create_connect_args(url)

    def connect(
        self,
        dialect: Dialect,
        record: ConnectionPoolEntry | None,
        cargs: cabc.Sequence[t.Any],
        cparams: cabc.Mapping[str, t.Any],
    ) -> DBAPIConnection | None:
        """Make a connection (the event ``do_connect``)."""
        state = self._state()

        if state is None:
            return None

        if record is not None:
            record.info[_MARK] = self._generation

        def login(url: sa.URL) -> DBAPIConnection:
            args, params = self._arguments(dialect, url, cargs, cparams)
            return dialect.connect(*args, **params)

        connection, failure = self._try_all(state, dialect, login)

        if failure is not None:
            # Its frames have the passwords that were tried.
            failure.__context__ = None
            raise failure.with_traceback(None)

        return connection

    def _try_all(
        self,
        state: AppState,
        dialect: Dialect,
        login: cabc.Callable[[sa.URL], DBAPIConnection],
    ) -> tuple[DBAPIConnection | None, Exception | None]:
        """Try the values until one is let in.

        :return: the connection, or the first error.
        """
        until = time.monotonic() + PATIENCE
        first: Exception | None = None

        for candidates, value in self._untried(state):
            try:
                url = self._parse(value)
            except ValueError:
                # Of a rotation that is under way; the current one was checked.
                continue

            try:
                connection = login(url)
            except dialect.loaded_dbapi.Error as error:
                first = first or error
                refused = _is_refusal(error)

                if refused is None:
                    refused = time.monotonic() < until

                if not refused:
                    break
            else:
                self._let_in = candidates, value
                return connection, None

        return None, first

    def _untried(
        self, state: AppState
    ) -> cabc.Iterator[tuple[tuple[t.Any, ...], t.Any]]:
        """Each value that may be right, with the candidates that it is one of.

        They are looked at anew each time, since a login takes long enough for another
        thread to learn of something. Vault is asked when there is nothing else left.
        """
        tried: list[t.Any] = []
        asked = False

        while len(tried) < MOST_LOGINS:
            candidates = state.candidates(self._key)
            values = self._in_order(candidates)
            value = next((value for value in values if value not in tried), None)

            if value is not None:
                tried.append(value)
                yield candidates, value
            elif asked or not state.ask():
                return
            else:
                asked = True

    def _in_order(self, candidates: tuple[t.Any, ...]) -> list[t.Any]:
        """The one that was let in comes first, until others are known.

        Else each new connection would begin with a refused login.
        """
        known, value = self._let_in

        if known != candidates:
            return list(candidates)

        return [value, *(other for other in candidates if other != value)]

    def _arguments(
        self,
        dialect: Dialect,
        url: sa.URL,
        cargs: cabc.Sequence[t.Any],
        cparams: cabc.Mapping[str, t.Any],
    ) -> tuple[cabc.Sequence[t.Any], dict[str, t.Any]]:
        """The engine's arguments, with what is different in the URL of now.

        So what ``connect_args`` and other listeners have added stays.
        """
        old_args, old = self._built_with
        new_args, new = dialect.create_connect_args(url)
        params = {k: v for k, v in cparams.items() if k in new or k not in old}

        for name, argument in new.items():
            if name not in old or old[name] != argument:
                params[name] = argument

        return (cargs if new_args == old_args else new_args), params

    def checkin(
        self, connection: DBAPIConnection | None, record: ConnectionPoolEntry
    ) -> None:
        """Close a connection of a retired pool when its work is done."""
        mark = record.info.get(_MARK)

        # One that somebody else has made, as by another listener, has none.
        if connection is not None and mark not in (None, self._generation):
            record.invalidate()

    def retire(self, key: str, version: int | None) -> None:
        """Close the connections that nobody uses, and the others when they come back.

        Those from before a fork are not closed: the parent may use them.
        """
        self._engine.dispose(close=self._pid == os.getpid())
        self._pid = os.getpid()
        # After the new pool is there. The other way round, a connection in between
        # would pass for one of the new pool, and nobody would close it.
        self._generation = object()
        _log.info("The pool for %s was retired: version %s.", key, version)


def _is_refusal(error: BaseException) -> bool | None:
    """Whether a login was refused; ``None`` when the driver does not tell.

    The texts do not: they are the server's, in its language.
    """
    state = getattr(error, "sqlstate", None)

    if isinstance(state, str):
        return state.startswith("28")

    # Psycopg has no code for a failed login. That the server wanted a password, and
    # still let nobody in, is how it tells.
    connection = getattr(error, "pgconn", None)

    if connection is not None:
        return bool(connection.used_password or connection.needs_password)

    detail = error.args[0] if error.args else None

    if isinstance(detail, int):
        return detail in _MYSQL_REFUSALS

    # pg8000 has the fields of the server's message.
    if isinstance(detail, dict) and "C" in detail:
        return str(detail["C"]).startswith("28")

    return None


def _url(drivername: str, value: t.Any) -> sa.URL:
    """The URL in a config value, for a driver.

    :raises ValueError: with the reason, and without the value.
    """
    try:
        url = sa.make_url(value)
    except (ArgumentError, ValueError):
        # SQLAlchemy's own message may have the URL in it.
        url = None

    if url is None:
        raise ValueError("it is no URL for SQLAlchemy.")

    if url.drivername != drivername:
        raise ValueError(
            f"the engine was made for {drivername!r}, and the URL is for"
            f" {url.drivername!r}: restart the app to change the driver."
        )

    return url


def _without_password(url: sa.URL) -> sa.URL:
    # Not URL.set(), for which None is no value.
    return sa.URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    )
