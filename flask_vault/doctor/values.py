"""Checks of the values themselves: known, short, or used twice. None is ever shown."""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from ..entries import Entry
from .case import Case
from .findings import Finding

#: What tutorials and installers put where a secret belongs.
_KNOWN: t.Final = frozenset(
    {
        "admin",
        "change-me",
        "change_me",
        "changeit",
        "changeme",
        "default",
        "dev",
        "development",
        "example",
        "insecure",
        "key",
        "password",
        "placeholder",
        "secret",
        "secret-key",
        "secret_key",
        "secretkey",
        "super-secret",
        "supersecret",
        "test",
        "todo",
        "you-will-never-guess",
    }
)

#: Bytes of a key that signs: as many as SHA-256 gives (RFC 7518, 3.2).
_LEAST: t.Final = 32

#: Config keys with which something is signed, whatever their entry says.
_SIGNS: t.Final = frozenset(
    {
        "JWT_SECRET_KEY",
        "SECRET_KEY",
        "SECURITY_PASSWORD_SALT",
        "WTF_CSRF_SECRET_KEY",
    }
)

_NEW: t.Final = "Make a new one: 'flask vault rotate --secret {key}'."


def secrets(case: Case) -> cabc.Iterator[Finding]:
    found = [*_weak(case), *_doubles(case), *_outside(case)]
    yield from found

    if not found and case.outcomes:
        yield Finding("secrets", "pass", "none is short, well known or used twice")


def _value(case: Case, entry: Entry) -> t.Any:
    outcome = case.outcomes.get(entry.key)
    return None if outcome is None or outcome.source == "unset" else outcome.value


def _weak(case: Case) -> cabc.Iterator[Finding]:
    for entry in case.entries:
        value = _value(case, entry)
        cure = (
            _NEW.format(key=entry.key)
            if entry.rotation is not None and entry.rotation.kind == "signing"
            else f"Write a new one: 'flask vault set {entry.key}'."
        )

        if _is_known(value):
            yield Finding(
                "secrets",
                "fail",
                f"{entry.key} has a value that everybody knows from examples.",
                cure,
            )
        elif _signs(entry) and _is_short(value):
            yield Finding(
                "secrets",
                "warn",
                f"{entry.key} signs, and has less than {_LEAST} bytes: it can be"
                " guessed.",
                cure,
            )


def _doubles(case: Case) -> cabc.Iterator[Finding]:
    users: dict[object, list[Entry]] = {}

    for entry in case.entries:
        value = _value(case, entry)

        # What everybody knows is told by itself.
        if isinstance(value, str | bytes) and value and not _is_known(value):
            users.setdefault(value, []).append(entry)

    for entries in users.values():
        if len({str(entry.reference) for entry in entries}) < 2:
            continue

        # Two plain settings may well be the same; secrets may not.
        if not any(map(_signs, entries)) and not all(e.rotation for e in entries):
            continue

        keys = [entry.key for entry in entries]
        yield Finding(
            "secrets",
            "warn",
            f"{' and '.join(keys)} have the same value: who knows one knows both.",
            _NEW.format(key=keys[-1]),
        )


def _outside(case: Case) -> cabc.Iterator[Finding]:
    """A key that the app sets itself, and that no entry replaces."""
    ours = {entry.key for entry in case.entries}

    for key in sorted(_SIGNS - ours):
        value = case.app.config.get(key)

        if _is_known(value):
            yield Finding(
                "secrets",
                "fail",
                f"{key} is set in the config, to what everybody knows from examples.",
                f"Declare it in VAULT_SECRETS: '{key}': {{'ref':"
                f" 'flask#{key.lower()}', 'rotate': 'token'}}.",
            )


def _signs(entry: Entry) -> bool:
    rotation = entry.rotation
    return entry.key in _SIGNS or entry.secret.keyring or (
        rotation is not None and rotation.kind == "signing"
    )  # fmt: skip


def _is_known(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() in _KNOWN


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        value = value.encode()

    return isinstance(value, bytes) and len(value) < _LEAST
