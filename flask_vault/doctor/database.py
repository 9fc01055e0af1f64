"""Checks of the databases whose passwords come from Vault."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import re
import secrets
import socket
import typing as t

from ..entries import Entry
from .case import Case
from .findings import Finding

if t.TYPE_CHECKING:
    from sqlalchemy import URL

#: Seconds that a database may take.
_LIMIT: t.Final = 5

#: How a driver is told so.
_TIMEOUTS: t.Final = {
    "asyncpg": "timeout",
    "mysqldb": "connect_timeout",
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
}

_PORTS: t.Final = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}

_KINDS: t.Final = ("database", "database-static")


def databases(case: Case) -> cabc.Iterator[Finding]:
    for entry in case.entries:
        outcome = case.outcomes.get(entry.key)
        value = None if outcome is None else outcome.value

        if _is_database(entry) and isinstance(value, str):
            yield _look(entry, value)


def _is_database(entry: Entry) -> bool:
    if entry.rotation is not None and entry.rotation.kind in _KINDS:
        return True

    return entry.key in {"DATABASE_URL", "SQLALCHEMY_DATABASE_URI"}


def _look(entry: Entry, value: str) -> Finding:
    """Where it is and who logs in is in the value, and so is not told."""
    try:
        from sqlalchemy import make_url
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return Finding(
            "database",
            "skip",
            f"SQLAlchemy is not installed, so that of {entry.key} was not asked",
        )

    if not re.match(r"[a-z0-9_+]+://", value):
        return Finding(
            "database", "skip", f"{entry.key} is no URL, so nobody knows where it is"
        )

    try:
        url = make_url(value)
        url.get_dialect().import_dbapi()
    except (ImportError, SQLAlchemyError, ValueError):
        return Finding(
            "database",
            "warn",
            f"the URL in {entry.key} is none, or its driver is not installed here.",
            "Install the driver, or correct the entry's template.",
        )

    if url.get_backend_name() == "sqlite":
        return Finding("database", "pass", f"{entry.key} is SQLite, without a password")

    if not _answers(url):
        return Finding(
            "database",
            "fail",
            f"the database of {entry.key} does not answer.",
            "Check host and port in its document, and the network between.",
        )

    if not _logs_in(url):
        return Finding(
            "database",
            "fail",
            f"the database of {entry.key} does not take user and password.",
            "Bring back the good one with 'flask vault rotate --restore FILE', or write"
            " it with 'flask vault set'.",
        )

    if url.host is not None and _logs_in(url.set(password=secrets.token_urlsafe(24))):
        return Finding(
            "database",
            "fail",
            f"the database of {entry.key} takes any password ('trust' or 'peer' in"
            " pg_hba.conf, say): to rotate it protects nothing.",
            "Have it ask for the password: 'scram-sha-256' in pg_hba.conf.",
        )

    return Finding(
        "database", "pass", f"that of {entry.key} takes its password, and no other"
    )


def _answers(url: URL) -> bool:
    port = url.port or _PORTS.get(url.get_backend_name())

    # A socket in the file system, say.
    if url.host is None or port is None:
        return True

    try:
        socket.create_connection((url.host, port), _LIMIT).close()
    except OSError:
        return False

    return True


def _logs_in(url: URL) -> bool:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    name = _TIMEOUTS.get(url.get_driver_name())
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    arguments, options = engine.dialect.create_connect_args(url)

    if name is not None:
        options[name] = _LIMIT

    try:
        # Not through the engine, which asks the server what it is like.
        opened = engine.dialect.connect(*arguments, **options)
    except Exception:
        # Each driver has errors of its own, whose text may hold the value.
        return False

    with contextlib.suppress(Exception):
        opened.close()

    return True
