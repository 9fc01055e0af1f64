"""From a document's fields to the value of a config key."""

from __future__ import annotations

import base64
import binascii
import collections.abc as cabc
import copy
import json
import typing as t

from .entries import Entry
from .errors import SecretFieldError
from .errors import SecretValueError
from .templates import Template

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

#: Fields that belong to Flask-Vault itself and are never shown as data.
RESERVED: t.Final = frozenset({"_rotation"})


def resolve(entry: Entry, data: cabc.Mapping[str, t.Any], path: str) -> t.Any:
    """Make the config value of an entry from its document.

    :param data: the document's fields.
    :param path: mount and path, for messages.
    :raises SecretFieldError: when the field, or one that the template names, is
        missing.
    :raises SecretValueError: when the value is null, nested, or does not cast.
    """
    secret, field = entry.secret, entry.reference.field

    if secret.template is not None:
        text = Template.parse(secret.template).render(
            lambda name: cast(pick(data, name, path), "str", f"{path}#{name}")
        )
        return cast(text, secret.cast, path)

    if field is None:
        visible = {name: data[name] for name in data if name not in RESERVED}
        return copy.deepcopy(visible)

    return cast(pick(data, field, path), secret.cast, f"{path}#{field}")


def fields_of(entry: Entry, data: cabc.Mapping[str, t.Any]) -> tuple[str, ...]:
    """The fields of a document from which an entry's value is made."""
    if entry.secret.template is not None:
        return Template.parse(entry.secret.template).fields

    if entry.reference.field is not None:
        return (entry.reference.field,)

    return tuple(name for name in data if name not in RESERVED)


def pick(data: cabc.Mapping[str, t.Any], field: str, path: str) -> t.Any:
    """The field of a document.

    :raises SecretFieldError: naming the fields that there are.
    """
    if field in data and field not in RESERVED:
        return data[field]

    names = ", ".join(sorted(name for name in data if name not in RESERVED))
    raise SecretFieldError(
        f"The document {path!r} has no field {field!r}; it has {names or 'no field'}:"
        f" correct the reference, or add it with 'flask vault set'.",
        path=path,
    )


def cast(
    value: t.Any, kind: str | None, where: str, *, home: str = "in Vault"
) -> t.Any:
    """Turn a value of a document into the type that the entry asks for.

    :param kind: one of ``str``, ``int``, ``float``, ``bool``, ``json``, ``bytes``, or
        ``None`` for ``str``.
    :param where: path and field, for messages; the value never is in one.
    :param home: where a wrong value can be corrected, for messages.
    """
    if value is None:
        raise SecretValueError(
            f"The value of {where!r} is null: write one to Vault, or set 'required' to"
            " False and give a 'default'.",
            path=where,
        )

    if kind == "json":
        return _json(value, where, home)

    if isinstance(value, dict | list):
        raise SecretValueError(
            f"The value of {where!r} is a nested {_shape(value)}: add 'cast': 'json' to"
            " take it as it is.",
            path=where,
        )

    try:
        return _SCALARS[kind or "str"](value)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        # The original's message holds the value.
        raise SecretValueError(
            f"The value of {where!r} is no {kind}: correct it {home}, or the 'cast'.",
            path=where,
        ) from None


def _json(value: t.Any, where: str, home: str) -> t.Any:
    if not isinstance(value, str):
        # The document stays as it is, whatever the app does to its value.
        return copy.deepcopy(value)

    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise SecretValueError(
            f"The value of {where!r} is not JSON: correct it {home}, or the 'cast'.",
            path=where,
        ) from None


def _str(value: t.Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"

    return str(value)


def _int(value: t.Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError

    return int(value)


def _bool(value: t.Any) -> bool:
    text = str(value).strip().lower()

    if text in _TRUE:
        return True

    if text in _FALSE:
        return False

    raise ValueError


def _bytes(value: t.Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError

    text = value.strip().translate(str.maketrans("-_", "+/"))
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _shape(value: object) -> str:
    return "object" if isinstance(value, dict) else "list"


_SCALARS: t.Final[dict[str, cabc.Callable[[t.Any], t.Any]]] = {
    "str": _str,
    "int": _int,
    "float": float,
    "bool": _bool,
    "bytes": _bytes,
}
