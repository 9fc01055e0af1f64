"""Values of the right type that open nothing, for an app that only gets built.

``flask --help`` builds the app to list its commands. It reads ``VAULT_SECRETS`` as it
is written, without checking it: that is for the start that matters.
"""

from __future__ import annotations

import collections.abc as cabc
import typing as t

_BY_CAST: t.Final[dict[t.Any, t.Any]] = {
    "int": 0,
    "float": 0.0,
    "bool": False,
    "json": {},
    "bytes": b"unset",
}


def placeholders(raw: object) -> dict[str, t.Any]:
    """A value for each config key that ``VAULT_SECRETS`` names."""
    if not isinstance(raw, cabc.Mapping):
        return {}

    return {str(key): _placeholder(str(key), entry) for key, entry in raw.items()}


def _placeholder(key: str, entry: object) -> t.Any:
    text = _text_for(key)

    if isinstance(entry, str):
        return text

    def get(name: str) -> t.Any:
        if isinstance(entry, cabc.Mapping):
            return entry.get(name, entry.get(name.upper()))

        return getattr(entry, name, None)

    template = get("template")

    if isinstance(template, str):
        from .errors import VaultError
        from .templates import Template

        try:
            return Template.parse(template).render(lambda name: "unset")
        except VaultError:
            return text

    cast = get("cast")
    return _BY_CAST.get(cast, text) if isinstance(cast, str) else text


def _text_for(key: str) -> str:
    """Extensions parse an address at once, and a database's by the name of a driver."""
    if "DATABASE" in key or "SQLALCHEMY" in key:
        return "sqlite://"

    return "unset://unset" if key.endswith(("_URI", "_URL", "_DSN")) else "unset"
