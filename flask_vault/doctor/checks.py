"""All checks, in the order in which they build on each other."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import typing as t

from ..errors import place_of
from ..errors import VaultError
from . import backups
from . import database
from . import rights
from . import server
from . import setup
from . import values
from .case import Case
from .findings import Finding
from .findings import of_error

Check = cabc.Callable[[Case], cabc.Iterator[Finding]]

CHECKS: t.Final[dict[str, Check]] = {
    "flask": setup.flask_version,
    "config": setup.config,
    "order": setup.order,
    "window": setup.window,
    "gunicorn": setup.gunicorn,
    "address": server.addresses,
    "tls": server.tls,
    "seal": server.seal,
    "clock": server.clock,
    "login": rights.login,
    "token": rights.token,
    "entries": rights.entries,
    "history": rights.history,
    "cas": rights.check_and_set,
    "write": rights.write,
    "secrets": values.secrets,
    "backups": backups.backups,
    "database": database.databases,
}

#: Those that need no config of an app, but what the environment says.
WITHOUT_APP: t.Final = ("flask", "address", "tls", "seal", "clock")


def run(case: Case, names: cabc.Iterable[str] = tuple(CHECKS)) -> list[Finding]:
    """Make the checks. One that breaks stops no other."""
    found: list[Finding] = []

    with contextlib.closing(case):
        for name in names:
            found += _make(CHECKS[name], name, case)

    return found


def _make(check: Check, name: str, case: Case) -> list[Finding]:
    # What was found before it broke is kept.
    found: list[Finding] = []

    try:
        for finding in check(case):
            found.append(finding)
    except VaultError as error:
        found.append(of_error(name, error))
    except Exception as error:
        # Its text may hold a value.
        found.append(
            Finding(
                name,
                "fail",
                f"the check broke: {type(error).__name__} at {place_of(error)}.",
                "Report it to the makers of Flask-Vault.",
            )
        )

    return found
