"""How each database is told a new password.

A statement is a template with ``{user}``, ``{host}``, and ``{password}`` or
``{verifier}``, which are filled in quoted. The verifier is what PostgreSQL and MariaDB
would make of the password, so that it is in no log of theirs; MySQL leaves passwords
out of its logs by itself.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import hashlib
import hmac
import secrets
import typing as t

from ..errors import VaultConfigError
from .rotators import Rejected

if t.TYPE_CHECKING:
    from sqlalchemy.engine import Connection

#: Seconds for which a statement may run, or a transaction be idle, before the server
#: ends it. A rotator that was stopped inside of one frees the lock then.
LIMIT: t.Final = 5

_ITERATIONS: t.Final = 4096


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The statements for one kind of database."""

    #: For the user who is connected.
    change: str
    #: For another user, and for an administrator.
    change_other: str
    #: Prepared for each connection that changes something.
    limits: tuple[str, ...] = ()
    #: Waits for the lock, which ends with the connection or the transaction. Returns 1
    #: when it has it.
    lock: str | None = None
    #: Ends the password that was replaced, where both are taken for a while.
    discard: str | None = None
    discard_other: str | None = None
    #: What is made of a password for ``{verifier}``.
    encode: t.Literal["plain", "scram", "native"] = "plain"

    def with_statements(self, given: cabc.Mapping[str, str]) -> Dialect:
        """The same with statements of a user's own.

        :raises VaultConfigError: for one that has no such name.
        """
        for name, statement in given.items():
            if name not in STATEMENTS or not isinstance(statement, str):
                raise VaultConfigError(
                    f"'statements' of 'rotate' has {name!r}: it is a mapping of"
                    f" {', '.join(STATEMENTS)} to text."
                )

        return dataclasses.replace(self, **given)  # type: ignore[arg-type]

    def fill(self, statement: str, user: str, password: str, host: str) -> str:
        """A statement for this user and password.

        :raises Rejected: for a password that cannot be quoted safely.
        """
        fields = {"user": _identifier(user, self), "host": _literal(host)}

        # Only the one that is asked for: not each password can be sent as it is.
        if "{verifier}" in statement:
            fields["verifier"] = _literal(_ENCODERS[self.encode](password))

        if "{password}" in statement:
            fields["password"] = _literal(password)

        return statement.format(**fields)


STATEMENTS: t.Final = ("change", "change_other", "discard", "discard_other", "lock")

POSTGRESQL: t.Final = Dialect(
    change="ALTER ROLE {user} PASSWORD {verifier}",
    change_other="ALTER ROLE {user} PASSWORD {verifier}",
    limits=(
        f"SET LOCAL statement_timeout = '{LIMIT}s'",
        f"SET LOCAL idle_in_transaction_session_timeout = '{LIMIT}s'",
    ),
    lock="SELECT 1 FROM pg_advisory_xact_lock({key})",
    encode="scram",
)

_MYSQL_LIMITS: t.Final = (
    f"SET SESSION lock_wait_timeout = {LIMIT}",
    f"SET SESSION wait_timeout = {LIMIT}",
)

_MYSQL_LOCK: t.Final = f"SELECT GET_LOCK('flask-vault-{{key}}', {LIMIT})"

MYSQL: t.Final = Dialect(
    change="ALTER USER USER() IDENTIFIED BY {password} RETAIN CURRENT PASSWORD",
    change_other=(
        "ALTER USER {user}@{host} IDENTIFIED BY {password} RETAIN CURRENT PASSWORD"
    ),
    limits=_MYSQL_LIMITS,
    lock=_MYSQL_LOCK,
    discard="ALTER USER USER() DISCARD OLD PASSWORD",
    discard_other="ALTER USER {user}@{host} DISCARD OLD PASSWORD",
)

MARIADB: t.Final = Dialect(
    change="SET PASSWORD = {verifier}",
    change_other="SET PASSWORD FOR {user}@{host} = {verifier}",
    limits=_MYSQL_LIMITS,
    lock=_MYSQL_LOCK,
    encode="native",
)

DIALECTS: t.Final[cabc.Mapping[str, Dialect]] = {
    "postgresql": POSTGRESQL,
    "mysql": MYSQL,
    "mariadb": MARIADB,
}


def dialect_for(
    connection: Connection, name: str | None, statements: cabc.Mapping[str, str]
) -> Dialect:
    """The dialect of a database that we are connected to.

    :param name: what the entry says.
    :param statements: of the entry's own.
    :raises VaultConfigError: when neither tells how.
    """
    found = name or connection.dialect.name

    if name is None and getattr(connection.dialect, "is_mariadb", False):
        found = "mariadb"

    if found in DIALECTS:
        return DIALECTS[found].with_statements(statements)

    if "change" not in statements:
        raise VaultConfigError(
            f"How a password is changed in {found!r} is not known: add 'statements' to"
            " 'rotate', such as {'change': 'ALTER USER {user} IDENTIFIED BY"
            " {password}'}."
        )

    bare = Dialect(change="", change_other=statements["change"])
    return bare.with_statements(statements)


def lock_key(name: str) -> int:
    """A number for the lock of a user, in the range of PostgreSQL's ``bigint``."""
    digest = hashlib.sha256(f"flask-vault {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def scram_verifier(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that it never sees it.

    :raises Rejected: for a password outside of ASCII, which each driver normalizes in
        its own way.
    """
    if not password.isascii() or not password.isprintable():
        raise Rejected("it holds characters outside of printable ASCII")

    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [
        base64.b64encode(part).decode("ascii")
        for part in (salt, hashlib.sha256(client_key).digest(), server_key)
    ]
    return f"SCRAM-SHA-256${_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


def _native_hash(password: str) -> str:
    # What MariaDB keeps; it is no choice of ours.
    first = hashlib.sha1(password.encode()).digest()  # noqa: S324 # nosec B324
    return f"*{hashlib.sha1(first).hexdigest().upper()}"  # noqa: S324 # nosec B324


_ENCODERS: t.Final[cabc.Mapping[str, cabc.Callable[[str], str]]] = {
    "plain": str,
    "scram": scram_verifier,
    "native": _native_hash,
}


def _literal(text: str) -> str:
    # Whether a backslash escapes depends on the server's settings.
    if not text.isprintable() or "'" in text or "\\" in text:
        raise Rejected("it holds a quote, a backslash or a control character")

    return f"'{text}'"


def _identifier(name: str, dialect: Dialect) -> str:
    if dialect in (MYSQL, MARIADB) or dialect.lock == _MYSQL_LOCK:
        return _literal(name)

    if "\0" in name:
        raise Rejected("the user's name holds a NUL")

    return '"{}"'.format(name.replace('"', '""'))
