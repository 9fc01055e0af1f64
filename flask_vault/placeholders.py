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

    return {str(key): _placeholder(entry) for key, entry in raw.items()}


def _placeholder(entry: object) -> t.Any:
    if isinstance(entry, str):
        return "unset"

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
            return "unset"

    cast = get("cast")
    return _BY_CAST.get(cast, "unset") if isinstance(cast, str) else "unset"
