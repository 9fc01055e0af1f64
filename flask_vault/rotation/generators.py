"""Makers of new values.

A generator is named by an entry's ``rotate``: one of :data:`GENERATORS`, or the dotted
path of a function of the user's, ``package.module:function`` (or
``package.module.function``). The function is called with the options as keyword
arguments and returns the new value, a ``str``.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import difflib
import importlib
import inspect
import keyword
import operator
import secrets
import string
import traceback
import typing as t

from ..errors import RotationError
from ..errors import VaultConfigError

if t.TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

# Safe unquoted in a URL, a shell and a .env file. "~" is left out: a shell expands it.
_PUNCTUATION = "-._"
_CLASSES = (
    string.ascii_lowercase,
    string.ascii_uppercase,
    string.digits,
    _PUNCTUATION,
)


_Options = cabc.Mapping[str, t.Any]


def _token(options: _Options) -> str:
    return secrets.token_urlsafe(options["bytes"])


def _password(options: _Options) -> str:
    alphabet = "".join(_CLASSES)

    # Drawing again, rather than placing one character of each class, keeps every valid
    # password equally likely.
    while True:
        value = "".join(secrets.choice(alphabet) for _ in range(options["length"]))

        # A leading "-" reads as an option on a command line.
        if value[0] not in _PUNCTUATION and all(
            any(c in group for c in value) for group in _CLASSES
        ):
            return value


def _hex(options: _Options) -> str:
    return secrets.token_hex(options["bytes"])


def _fernet(options: _Options) -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode("ascii")


def _rsa(options: _Options) -> str:
    from cryptography.hazmat.primitives.asymmetric import rsa

    # 65537 is the exponent that everybody uses, and that FIPS 186-5 allows.
    return _pem(rsa.generate_private_key(65537, options["bits"]))


def _ec(options: _Options) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    curves = {
        "P-256": ec.SECP256R1(),
        "P-384": ec.SECP384R1(),
        "P-521": ec.SECP521R1(),
    }
    return _pem(ec.generate_private_key(curves[options["curve"]]))


def _ed25519(options: _Options) -> str:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return _pem(ed25519.Ed25519PrivateKey.generate())


def _pem(key: PrivateKeyTypes) -> str:
    """A private key as PKCS#8. Whoever needs the public one derives it."""
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


@dataclasses.dataclass(frozen=True)
class _Size:
    """An option that says how long the value is."""

    default: int
    minimum: int
    maximum: int = 1024
    multiple_of: int = 1

    def demand_on(self, value: object) -> str | None:
        """What the option must be and this value is not."""
        # bool is an int: True would ask for one byte.
        if not isinstance(value, int) or isinstance(value, bool):
            return f"a whole number, not a {type(value).__name__}"

        if not self.minimum <= value <= self.maximum:
            return f"from {self.minimum} to {self.maximum}, not {value}"

        if value % self.multiple_of:
            return f"a multiple of {self.multiple_of}, not {value}"

        return None


@dataclasses.dataclass(frozen=True)
class _Choice:
    """An option that is one of a few words."""

    default: str
    choices: tuple[str, ...]

    def demand_on(self, value: object) -> str | None:
        """What the option must be and this value is not."""
        if value in self.choices:
            return None

        shown = repr(value) if isinstance(value, str) else type(value).__name__
        return f"one of {_join(self.choices)}, not {shown}"


@dataclasses.dataclass(frozen=True)
class _Builtin:
    make: cabc.Callable[[_Options], str]
    options: cabc.Mapping[str, _Size | _Choice] = dataclasses.field(
        default_factory=dict
    )


_CURVES: t.Final = ("P-256", "P-384", "P-521")

_BUILTINS: t.Final[cabc.Mapping[str, _Builtin]] = {
    "token": _Builtin(_token, {"bytes": _Size(default=32, minimum=16)}),
    "password": _Builtin(_password, {"length": _Size(default=32, minimum=16)}),
    "hex": _Builtin(_hex, {"bytes": _Size(default=32, minimum=16)}),
    "fernet": _Builtin(_fernet),
    # RFC 7518 allows no signature below 2048 bits. A key of 8192 takes many seconds.
    "rsa": _Builtin(_rsa, {"bits": _Size(2048, 2048, 8192, multiple_of=8)}),
    "ec": _Builtin(_ec, {"curve": _Choice(default="P-256", choices=_CURVES)}),
    "ed25519": _Builtin(_ed25519),
}

GENERATORS: t.Final[tuple[str, ...]] = tuple(_BUILTINS)
"""The names of the generators that come with Flask-Vault."""


def check(generator: str, options: cabc.Mapping[str, object]) -> None:
    """Check a generator's name and options without making a value.

    Of a dotted path only the shape is checked: it is imported when it is used.

    :param generator: a name of :data:`GENERATORS` or a dotted path.
    :param options: the options that :func:`make` would get.
    :raises VaultConfigError: when there is no such generator, or it does not take these
        options.
    """
    if (builtin := _BUILTINS.get(generator)) is not None:
        _complete(generator, builtin, options)
    elif _split(generator) is None:
        raise VaultConfigError(
            f"There is no generator {generator!r}.{_suggestion(generator, GENERATORS)}"
            f" It must be one of {_join(GENERATORS)}, or your own function as"
            " 'package.module:function'."
        )


def make(generator: str, options: cabc.Mapping[str, object]) -> str:
    """Make a new value.

    :param generator: a name of :data:`GENERATORS` or a dotted path.
    :param options: ``bytes`` for ``token`` and ``hex``, ``length`` for ``password``,
        ``bits`` for ``rsa``, ``curve`` for ``ec``; for a dotted path, the function's
        keyword arguments.
    :return: text; of ``rsa``, ``ec`` and ``ed25519`` a private key as PKCS#8 in PEM.
    :raises VaultConfigError: as :func:`check` does, and when a dotted path cannot be
        imported, is not callable, or does not take these options.
    :raises RotationError: when the function of a dotted path raised, or returned
        anything but a ``str`` with something in it.
    """
    check(generator, options)

    if (builtin := _BUILTINS.get(generator)) is not None:
        return builtin.make(_complete(generator, builtin, options))

    return _call(generator, load(generator, "generator"), options)


def _complete(
    generator: str, builtin: _Builtin, options: cabc.Mapping[str, object]
) -> dict[str, object]:
    """The options with the defaults of those that are not given, all checked."""
    complete: dict[str, object] = {
        name: option.default for name, option in builtin.options.items()
    }

    for name, value in options.items():
        if (option := builtin.options.get(name)) is None:
            takes = (
                f" It takes {_join(builtin.options)}."
                if builtin.options
                else " It takes no options."
            )
            raise VaultConfigError(
                f"The generator {generator!r} has no option {name!r}."
                f"{_suggestion(name, builtin.options)}{takes}"
            )

        if (demand := option.demand_on(value)) is not None:
            raise VaultConfigError(
                f"The option {name!r} of the generator {generator!r} must be {demand}."
            )

        complete[name] = value

    return complete


def _split(generator: str) -> tuple[str, str] | None:
    """Part a dotted path into the module and the name in it."""
    module, colon, name = generator.partition(":")

    if not colon:
        module, _, name = generator.rpartition(".")

    for part in (*module.split("."), *name.split(".")):
        if not part.isidentifier() or keyword.iskeyword(part):
            return None

    return module, name


def load(path: str, what: str = "function") -> cabc.Callable[..., object]:
    """Import what a dotted path names.

    :param what: what it should be, for messages.
    :raises VaultConfigError: when it cannot be imported, or not be called.
    """
    parts = _split(path)

    if parts is None:
        raise VaultConfigError(
            f"The {what} {path!r} is no dotted path: write 'package.module:name'."
        )

    module, name = parts

    # What fails is raised outside the except blocks, here and below: a message of the
    # user's code may quote a value, and must not live on as __context__.
    try:
        found: t.Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        problem = f"there is no module {error.name!r}"
    except Exception as error:
        problem = f"importing {module!r} raised {describe(error)}"
    else:
        try:
            found = operator.attrgetter(name)(found)
        except AttributeError:
            problem = f"there is no {name!r} in {module!r}"
        else:
            if callable(found):
                return t.cast("cabc.Callable[..., object]", found)

            problem = f"it is of type {type(found).__name__!r}, and not a function"

    raise VaultConfigError(f"The {what} {path!r} cannot be used: {problem}.")


def _call(
    generator: str,
    function: cabc.Callable[..., object],
    options: cabc.Mapping[str, object],
) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        pass  # Some functions written in C have none.
    else:
        try:
            signature.bind(**options)
        except TypeError as error:
            # Speaks of the names of arguments only.
            raise VaultConfigError(
                f"The generator {generator!r} does not take these options: {error}."
            ) from None

    problem = None
    value: object = None

    try:
        value = function(**options)
    except Exception as error:
        problem = f"raised {describe(error)}"

    if problem is None:
        if isinstance(value, str) and value.strip():
            return value

        problem = (
            "returned an empty str"
            if isinstance(value, str)
            else f"returned {type(value).__name__!r}, and not a str"
        )

    raise RotationError(f"The generator {generator!r} {problem}. No value was made.")


def describe(error: Exception) -> str:
    """Name an exception and its place, without its message, which may hold a value."""
    place = ""

    if frames := traceback.extract_tb(error.__traceback__):
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})"

    return f"{type(error).__name__}{place}"


def _suggestion(word: object, known: cabc.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _join(names: cabc.Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
