"""Which rotator a name means.

A rotator is named by an entry's ``rotate``, in ``kind``: ``database``, ``callable``, a
name that was given with :func:`register`, that of an entry point in the group
``flask_vault.rotators``, or the dotted path of a class, ``package.module:Class``.
"""

from __future__ import annotations

import collections.abc as cabc
import difflib
import importlib.metadata
import inspect
import typing as t

from ..errors import RotationError
from ..errors import VaultConfigError
from . import generators
from .generators import describe
from .rotators import Rotator

R = t.TypeVar("R", bound=type)

#: The group of entry points in which other packages offer rotators.
ENTRY_POINTS: t.Final = "flask_vault.rotators"


def _database() -> type:
    from .database import DatabaseRotator

    return DatabaseRotator


def _callable() -> type:
    from .callables import CallableRotator

    return CallableRotator


_BUILTINS: t.Final[cabc.Mapping[str, cabc.Callable[[], type]]] = {
    "database": _database,
    "callable": _callable,
}

_registered: dict[str, type] = {}


def register(name: str) -> cabc.Callable[[R], R]:
    """A decorator that gives a rotator class a name for ``kind``.

    .. code-block:: python

        @vault.rotator("stripe")
        class StripeRotator(Rotator): ...

    The module has to be imported by the app, or the name is not known. A class with the
    name of one that was registered before takes its place, so that a module can be
    loaded anew.

    :raises VaultConfigError: when a built-in kind has that name.
    """
    if name in _BUILTINS or name in ("signing", "database-static"):
        raise VaultConfigError(
            f"The name {name!r} belongs to a rotator of Flask-Vault's own: choose"
            " another one."
        )

    def keep(rotator: R) -> R:
        _registered[name] = rotator
        return rotator

    return keep


def new_rotator(kind: str, options: cabc.Mapping[str, object]) -> Rotator:
    """Make the rotator for an entry.

    :param options: its keyword arguments.
    :raises VaultConfigError: when there is none of this kind, or it does not take these
        options.
    """
    found = _find(kind)

    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        # Speaks of the names of arguments only.
        raise VaultConfigError(
            f"The rotator {kind!r} does not take these options: {error}."
        ) from None
    except ValueError:
        pass  # Some classes written in C have no signature.

    problem = ""

    try:
        return t.cast(Rotator, found(**options))
    except (VaultConfigError, RotationError):
        raise
    except Exception as error:
        problem = describe(error)

    raise VaultConfigError(f"The rotator {kind!r} cannot be made: {problem}.")


def _find(kind: str) -> cabc.Callable[..., object]:
    if kind in _BUILTINS:
        return _BUILTINS[kind]()

    if kind in _registered:
        return _registered[kind]

    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=kind):
        return t.cast("cabc.Callable[..., object]", point.load())

    if ":" in kind or "." in kind:
        return generators.load(kind, "rotator")

    known = [
        *_BUILTINS,
        *_registered,
        *(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS)),
    ]
    close = difflib.get_close_matches(kind, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise VaultConfigError(
        f"There is no rotator {kind!r}{hint}. There are {', '.join(known)}: import the"
        " module with @vault.rotator in your app's factory, or give the dotted path"
        " of the class as 'package.module:Class'."
    )
