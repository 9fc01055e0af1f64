"""What an error of a database's driver means for a rotation.

By its code alone: the text is the server's, in its language, and may quote a statement.
"""

from __future__ import annotations

import typing as t

from ..errors import RotationError
from .rotators import NotYet
from .rotators import Rejected

if t.TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

#: PostgreSQL's and MySQL's codes for a right that is missing: no other password helps.
_NO_RIGHT: t.Final = {"42501", 1044, 1045, 1142, 1227, 1410}

#: MySQL's codes for what may pass; those from 2000 are the client's own.
_MAY_PASS: t.Final = {1040, 1053, 1080, 1205, 1213, 1317, 3024}

#: Of a server that takes no changes now, such as a replica before it is promoted.
_READ_ONLY: t.Final = {"25006", 1836}

#: MariaDB's codes for a verifier that it does not take, whatever the password: of a
#: user who logs in by another plugin, and of a server that reads each password.
_NO_VERIFIER: t.Final = {1290, 1372}


def meaning_of(error: DBAPIError) -> Exception:
    """What to make of a statement that failed."""
    from sqlalchemy.exc import InterfaceError
    from sqlalchemy.exc import OperationalError

    code = _code(error)
    own = isinstance(code, int)

    if code in _NO_RIGHT:
        return RotationError(
            f"The database does not let the user change this password ({shown(error)}):"
            " grant the right, or name an 'admin' in 'rotate'."
        )

    if code in _READ_ONLY:
        return NotYet(f"the database takes no changes now: {shown(error)}")

    # Class 25 is about the transaction, such as one that was idle for too long.
    if isinstance(code, str) and code.startswith("25"):
        return NotYet(f"the end is not known: {shown(error)}")

    if code in _NO_VERIFIER:
        return RotationError(
            f"The database does not take a password in this form ({shown(error)}): it"
            " is read-only, or reads passwords to judge them, or the user logs in by a"
            " plugin of its own. For the last two, give 'rotate' the statement that"
            " sends it as it is: 'statements': {'change': 'SET PASSWORD ="
            " PASSWORD({password})'}."
        )

    if isinstance(error, InterfaceError) or (
        isinstance(error, OperationalError)
        and (not own or code in _MAY_PASS or t.cast(int, code) >= 2000)
    ):
        return NotYet(f"the end is not known: {shown(error)}")

    return Rejected(f"the database refused it: {shown(error)}")


def _code(error: DBAPIError) -> str | int | None:
    original = error.orig
    first = original.args[0] if original is not None and original.args else None

    # MySQL's own before the SQLSTATE, which some of its drivers have as well: "42000"
    # is a right that is missing, and much else.
    if isinstance(first, int):
        return first

    for name in ("sqlstate", "pgcode"):
        code = getattr(original, name, None)

        if isinstance(code, str):
            return code

    return None


def shown(error: DBAPIError) -> str:
    """Type and code; the text may quote the statement."""
    code = _code(error)
    name = type(error.orig).__name__
    return name if code is None else f"{name}, code {code}"
