"""Which document each variable of a ``.env`` file goes to."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import io
import pathlib
import re
import typing as t

from flask import Flask

from .entries import Entry
from .entries import Reference
from .errors import VaultConfigError
from .settings import ENVIRONMENT

_CONFIG_KEY: t.Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*\Z")

#: What says how Flask and Flask-Vault run. No app needs it from Vault, and Flask-Vault
#: needs it before there is one.
_SETTING: t.Final = re.compile(
    r"(VAULT|BAO)_|(ENV|DEBUG|TESTING)\Z"
    r"|FLASK_(APP|DEBUG|ENV|SKIP_DOTENV|RUN_\w+|TESTING|VAULT_\w+)\Z"
)


@dataclasses.dataclass(frozen=True)
class Assigned:
    """A variable that goes to Vault."""

    name: str
    #: The config key that it becomes.
    key: str
    reference: Reference
    value: str = dataclasses.field(repr=False)
    #: Whether ``VAULT_SECRETS`` has it already.
    declared: bool


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A variable that stays where it is."""

    name: str
    reason: str


def read_dotenv(file: pathlib.Path) -> dict[str, str | None]:
    """The variables of a file, as ``python-dotenv`` and so Flask reads them.

    :raises VaultConfigError: when the library is not installed, and for a line that it
        cannot read. The line is not shown.
    """
    try:
        from dotenv import dotenv_values
        from dotenv.parser import parse_stream
    except ImportError:
        raise VaultConfigError(
            "A .env file is read by python-dotenv, which is not installed: run 'pip"
            " install flask-vault[dotenv]'."
        ) from None

    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise VaultConfigError(
            f"{str(file)!r} cannot be read ({error.strerror}): check its permissions."
        ) from None
    except UnicodeDecodeError:
        text = None

    if text is None:
        raise VaultConfigError(f"{str(file)!r} is no text in UTF-8: save it as such.")

    for binding in parse_stream(io.StringIO(text)):
        # The library only logs a warning, and the variable would be lost.
        if binding.error:
            raise VaultConfigError(
                f"Line {binding.original.line} of {str(file)!r} is none that a .env"
                " file has: write NAME='value', and put a value with blanks, quotes or"
                " a '#' in quotes."
            )

    return dotenv_values(stream=io.StringIO(text))


def assign(
    variables: cabc.Mapping[str, str | None],
    entries: cabc.Iterable[Entry],
    *,
    only: cabc.Collection[str] = (),
    leave: cabc.Collection[str] = (),
) -> tuple[list[Assigned], list[Skipped]]:
    """Find the place of each variable.

    What ``VAULT_SECRETS`` declares, by its config key or its ``env``, goes where that
    says. The rest goes to a document of its first word.

    :param only: names of variables; all others are left out.
    :param leave: names of variables that are left out.
    :raises VaultConfigError: when a name is in none of the lines, or two variables are
        the same secret.
    """
    for name in (*only, *leave):
        if name not in variables:
            raise VaultConfigError(
                f"The file has no variable {name!r}: check the name, and the case of"
                " its letters."
            )

    by_name = {entry.key: entry for entry in entries}
    by_name.update({e.secret.env: e for e in by_name.values() if e.secret.env})
    assigned: list[Assigned] = []
    skipped: list[Skipped] = []

    for name, value in variables.items():
        key = name.removeprefix("FLASK_")
        entry = by_name.get(name) or by_name.get(key)
        left_out = name in leave or (bool(only) and name not in only)
        reason = "left out" if left_out else _reason(name, key, value, entry, only)

        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue

        reference = _place_of(key) if entry is None else entry.reference
        assigned.append(
            Assigned(
                name,
                key if entry is None else entry.key,
                reference,
                t.cast(str, value),
                entry is not None,
            )
        )

    _check_agreement(assigned)
    return assigned, skipped


def _reason(
    name: str,
    key: str,
    value: str | None,
    entry: Entry | None,
    only: cabc.Collection[str],
) -> str | None:
    """Why a variable stays where it is; ``None`` when it does not."""
    if not value:
        return "empty"

    if entry is not None:
        if entry.secret.template is not None:
            return "its entry has a template: set the fields one by one"

        if entry.reference.field is None:
            return "its entry is a whole document"

        return "its entry pins a version" if entry.secret.version else None

    if "__" in key:
        return "a part of a nested setting"

    if not _CONFIG_KEY.match(key):
        return "no config key"

    # Whoever names it, wants it.
    if name in only:
        return None

    if _SETTING.match(name) or key in SETTINGS:
        return "a setting"

    return None


#: Config keys of Flask's that are no secrets, and the names by which Vault is found.
SETTINGS: t.Final = frozenset(Flask.default_config) - {
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
} | frozenset(name for names in ENVIRONMENT.values() for name in names)


def _place_of(key: str) -> Reference:
    if key == "SECRET_KEY":
        return Reference("flask", "secret_key")

    word, _, rest = key.lower().partition("_")
    return Reference(word, rest) if rest else Reference("app", word)


def _check_agreement(assigned: cabc.Iterable[Assigned]) -> None:
    """No two variables are the same secret, unless they agree."""
    seen: dict[Reference, Assigned] = {}

    for item in assigned:
        other = seen.setdefault(item.reference, item)

        if other.value != item.value:
            raise VaultConfigError(
                f"{other.name} and {item.name} are both {item.reference}, and not the"
                f" same: leave one of them out with '--except {item.name}'."
            )
