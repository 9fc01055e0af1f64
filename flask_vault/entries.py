"""The entries of ``VAULT_SECRETS``: which config key comes from where in Vault."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import difflib
import re
import typing as t

from .errors import VaultConfigError
from .paths import has_control_character
from .paths import problem_of
from .templates import Template

#: Says "not given" where ``None`` is a value that a user may want.
MISSING: t.Final[t.Any] = type("Missing", (), {"__repr__": lambda self: "MISSING"})()

CASTS: t.Final = ("str", "int", "float", "bool", "json", "bytes")

_ROTATOR = re.compile(r"[A-Za-z_][\w.:-]*\Z")

_UNITS: t.Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)")

_CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*\Z")


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where a value is: ``path#field``, below ``VAULT_MOUNT`` and ``VAULT_PREFIX``.

    A leading slash makes it absolute: ``/mount/path#field`` ignores both keys.
    """

    #: Path without leading slash; for an absolute reference it begins with the mount.
    path: str
    #: Field of the document, or ``None`` for the whole of it.
    field: str | None = None
    absolute: bool = False

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``path#field``, ``path``, ``/mount/path#field`` or ``/mount/path``.

        :raises VaultConfigError: for an empty path or field, an empty, ``.`` or ``..``
            segment, a control character, or white space around a segment.
        """
        if not isinstance(text, str):
            raise VaultConfigError(
                f"A reference is text such as 'path#field', not {type(text).__name__}."
            )

        if has_control_character(text):
            raise VaultConfigError(
                f"The reference {text!r} holds a control character: write"
                " 'path#field' in printable characters."
            )

        path, hash_sign, field = text.partition("#")

        if hash_sign and not field.strip():
            raise VaultConfigError(
                f"The reference {text!r} names no field after '#': write"
                f" '{path or 'path'}#field'."
            )

        if "#" in field:
            raise VaultConfigError(
                f"The reference {text!r} has more than one '#': write 'path#field'."
            )

        absolute = path.startswith("/")
        bare = path[1:] if absolute else path

        if not bare:
            raise VaultConfigError(
                f"The reference {text!r} names no path: write 'path#field'."
            )

        problem = problem_of(bare)

        if problem is not None:
            raise VaultConfigError(f"The reference {text!r} {problem}")

        if absolute and "/" not in bare:
            raise VaultConfigError(
                f"The absolute reference {text!r} needs a mount and a path: write"
                f" '/{bare}/path#field', or drop the leading slash."
            )

        return cls(bare, field or None, absolute)

    def __str__(self) -> str:
        text = f"/{self.path}" if self.absolute else self.path
        return text if self.field is None else f"{text}#{self.field}"


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How the value of an entry is made anew.

    :param kind: what puts the value to work: ``signing`` (it lives in Vault only),
        ``database``, ``database-static``, ``callable``, or a rotator of the user's, by
        its name or dotted path.
    :param generator: what makes the value, see ``flask_vault.rotation.generators``.
    :param field: which field of the document is rotated; default the reference's own.
    :param options: what else was given, for the generator and the rotator.
    """

    kind: str = "signing"
    generator: str = "token"
    field: str | None = None
    options: cabc.Mapping[str, object] = dataclasses.field(default_factory=dict)

    KINDS: t.ClassVar = ("signing", "database", "database-static", "callable")

    @classmethod
    def parse(cls, raw: object) -> Rotation:
        """Read ``"token"`` or ``{"generator": "token", "bytes": 48}``."""
        if isinstance(raw, Rotation):
            return raw

        if isinstance(raw, str):
            return cls(generator=raw)

        if not isinstance(raw, cabc.Mapping):
            raise VaultConfigError(
                "'rotate' is the name of a generator such as 'token', or a mapping"
                f" such as {{'generator': 'token'}}, not {type(raw).__name__}."
            )

        given = _lower_names(raw)
        kind = given.pop("kind", "signing")
        generator = given.pop("generator", "token" if kind == "signing" else "password")
        field = given.pop("field", None)

        # A rotator of the user's may be registered later than this. But what is nearly
        # one of ours was meant to be that.
        nearly = _did_you_mean(str(kind), cls.KINDS)

        if kind not in cls.KINDS and (
            nearly or not isinstance(kind, str) or not _ROTATOR.match(kind)
        ):
            raise VaultConfigError(
                f"'rotate' has the unknown kind {kind!r}{nearly}; the kinds are"
                f" {', '.join(cls.KINDS)}, and the rotators of your own."
            )

        if not isinstance(generator, str) or not isinstance(field, str | None):
            raise VaultConfigError("'generator' and 'field' of 'rotate' are text.")

        return cls(t.cast(str, kind), generator, field, given)


@dataclasses.dataclass(frozen=True)
class Secret:
    """One entry of ``VAULT_SECRETS``.

    :param ref: ``path#field``; with ``template`` or ``cast="json"`` a bare ``path``.
    :param template: text with ``{field}`` placeholders over a whole document. In a URL
        each value is escaped for the part where it stands; ``{field!s}`` is verbatim.
    :param env: environment variable that serves when Vault is unreachable or the
        path or field is missing. Never after a denial or a refused login.
    :param default: serves after ``env``, under the same conditions.
    :param required: ``False`` lets the app start without a usable value, a warning is
        logged and the config key is ``default`` or ``None``.
    :param cast: ``str`` (default), ``int``, ``float``, ``bool``, ``json`` or ``bytes``
        (from base64).
    :param version: KV v2 version to pin; ``None`` is the newest.
    :param name: a name for ``flask vault rotate --secret``, unique in the app.
    :param rotate: how the value is made anew: a generator's name or a mapping.
    :param max_age: seconds, or text such as ``30d``, after which ``flask vault rotate
        --due`` makes a new value.
    :param keyring: a new value is accepted before it signs, and the old one after it
        signed. Needs KV v2.
    :param retire_after: for how long what an old value of the ring has signed is
        accepted: seconds or a :class:`~datetime.timedelta`. ``None`` is the lifetime of
        what the key signs: ``PERMANENT_SESSION_LIFETIME``, for JWT keys the longest
        lifetime of a token.
    :param fallbacks_key: the config key for a list of all values that the ring accepts,
        oldest first. Of ``SECRET_KEY`` it is ``SECRET_KEY_FALLBACKS``.
    """

    ref: str
    template: str | None = None
    env: str | None = None
    default: t.Any = dataclasses.field(default=MISSING, repr=False)
    required: bool = True
    cast: str | None = None
    version: int | None = None
    name: str | None = None
    rotate: str | cabc.Mapping[str, object] | Rotation | None = None
    keyring: bool = False
    max_age: float | str | None = None
    retire_after: float | datetime.timedelta | None = None
    fallbacks_key: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A config key with its parsed :class:`Secret`."""

    key: str
    secret: Secret
    reference: Reference
    rotation: Rotation | None

    @property
    def rotated_field(self) -> str | None:
        """The field of the document that a rotation replaces."""
        if self.rotation is None:
            return None

        # It is the only one that the engine changes.
        if self.rotation.kind == "database-static":
            return "password"

        return self.rotation.field or self.reference.field

    @property
    def fallbacks_key(self) -> str | None:
        """The config key for the values that the entry's ring accepts."""
        if not self.secret.keyring:
            return None

        if self.secret.fallbacks_key is None and self.key == "SECRET_KEY":
            return "SECRET_KEY_FALLBACKS"

        return self.secret.fallbacks_key


_FIELDS: t.Final = tuple(f.name for f in dataclasses.fields(Secret))


def parse_entries(raw: object) -> tuple[Entry, ...]:
    """Parse ``VAULT_SECRETS``, whichever way Flask loaded it.

    :param raw: a mapping of config key to short form (``"stripe#api_key"``), mapping
        or :class:`Secret`.
    :raises VaultConfigError: with the config key and the cure in the message.
    """
    if raw is None:
        return ()

    if not isinstance(raw, cabc.Mapping):
        raise VaultConfigError(
            "VAULT_SECRETS is a mapping of config key to reference, such as"
            f" {{'STRIPE_KEY': 'stripe#api_key'}}, not {type(raw).__name__}."
        )

    entries = tuple(_parse_entry(key, value) for key, value in raw.items())
    names: dict[str, str] = {}

    for entry in entries:
        name = entry.secret.name

        if name is None:
            continue

        if name in names:
            raise VaultConfigError(
                f"VAULT_SECRETS[{names[name]!r}] and VAULT_SECRETS[{entry.key!r}] share"
                f" the name {name!r}: give one of them another 'name'."
            )

        names[name] = entry.key

    _check_fallbacks(entries)
    return entries


def _check_fallbacks(entries: cabc.Iterable[Entry]) -> None:
    """No two entries write the same config key."""
    owners = {entry.key: entry.key for entry in entries}

    for entry in entries:
        key = entry.fallbacks_key

        if key is None:
            continue

        if key in owners:
            raise VaultConfigError(
                f"VAULT_SECRETS[{entry.key!r}]: the key ring writes {key!r}, and so"
                f" does the entry {owners[key]!r}: remove that entry, or give another"
                " 'fallbacks_key'."
            )

        owners[key] = entry.key


def _parse_entry(key: object, raw: object) -> Entry:
    where = f"VAULT_SECRETS[{key!r}]"

    if not isinstance(key, str) or not _CONFIG_KEY.match(key):
        raise VaultConfigError(
            f"{where} is no config key: Flask's are upper case, such as 'STRIPE_KEY'."
        )

    if key.startswith("VAULT_"):
        raise VaultConfigError(
            f"{where} would take a setting of Flask-Vault from Vault itself: set it in"
            " the config or the environment."
        )

    try:
        secret = _parse_secret(raw)
        reference = Reference.parse(secret.ref)
        rotation = None if secret.rotate is None else Rotation.parse(secret.rotate)
        entry = Entry(key, secret, reference, rotation)
        _check_entry(entry)
    except VaultConfigError as error:
        raise VaultConfigError(f"{where}: {error}") from None

    return entry


def _parse_secret(raw: object) -> Secret:
    if isinstance(raw, Secret):
        return raw

    if isinstance(raw, str):
        return Secret(raw)

    if not isinstance(raw, cabc.Mapping):
        raise VaultConfigError(
            "an entry is 'path#field', a mapping or a Secret, not"
            f" {type(raw).__name__}."
        )

    given = _lower_names(raw)

    for name in given:
        if name not in _FIELDS:
            raise VaultConfigError(
                f"unknown key {name!r}{_did_you_mean(name, _FIELDS)}; the keys are"
                f" {', '.join(_FIELDS)}."
            )

    if "ref" not in given:
        raise VaultConfigError("'ref' is missing: add 'ref': 'path#field'.")

    return Secret(**given)


def _check_entry(entry: Entry) -> None:
    secret, field = entry.secret, entry.reference.field

    for name in ("ref", "template", "env", "name"):
        value = getattr(secret, name)

        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise VaultConfigError(f"{name!r} is text that is not empty.")

    for name in ("required", "keyring"):
        if not isinstance(getattr(secret, name), bool):
            raise VaultConfigError(f"{name!r} is true or false.")

    if secret.cast is not None and secret.cast not in CASTS:
        raise VaultConfigError(
            f"unknown cast {secret.cast!r}{_did_you_mean(str(secret.cast), CASTS)}; the"
            f" casts are {', '.join(CASTS)}."
        )

    version = secret.version

    if version is not None and (
        isinstance(version, bool) or not isinstance(version, int) or version < 1
    ):
        raise VaultConfigError("'version' is a whole number from 1.")

    if secret.template is not None and field is not None:
        raise VaultConfigError(
            f"a template is made from a whole document: write 'ref':"
            f" {secret.ref.partition('#')[0]!r} without '#{field}'."
        )

    if secret.template is not None:
        Template.parse(secret.template)

    if secret.template is None and field is None and secret.cast != "json":
        raise VaultConfigError(
            f"the reference {secret.ref!r} names no field: write '{secret.ref}#field',"
            " or add a 'template', or 'cast': 'json' for the whole document."
        )

    _check_ring(secret)

    if entry.key == "SECRET_KEY_FALLBACKS" and isinstance(secret.default, str):
        raise VaultConfigError(
            "'default' must be a list, or Flask takes each letter of it for a key."
        )

    if secret.max_age is not None:
        duration(secret.max_age, "'max_age'")

        if entry.rotation is None:
            raise VaultConfigError(
                "'max_age' says when to rotate, and 'rotate' is missing: add it."
            )

    if entry.rotation is None:
        return

    if entry.rotated_field is None:
        raise VaultConfigError(
            "'rotate' does not know which field to change: add 'field', as in"
            " {'kind': 'database', 'field': 'password'}."
        )

    if entry.rotation.kind == "database-static" and (
        "/static-creds/" not in entry.reference.path or not entry.reference.absolute
    ):
        raise VaultConfigError(
            "'rotate' of the kind 'database-static' is for a role of Vault's database"
            " engine: write 'ref': '/database/static-creds/ROLE'."
        )

    if version is not None:
        raise VaultConfigError(
            "'version' pins an old value and 'rotate' makes a new one: keep one."
        )


def duration(value: object, what: str) -> float:
    """Read a duration: seconds as a number, or ``90s``, ``15m``, ``12h``, ``30d``.

    :param what: what it is for, for the message.
    :return: seconds.
    :raises VaultConfigError: when it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)

    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None

    if match is None:
        raise VaultConfigError(
            f"{what} is a number of seconds, or text such as '90s', '15m', '12h' or"
            " '30d'."
        )

    return float(match[1]) * _UNITS[match[2] or "s"]


def _check_ring(secret: Secret) -> None:
    for name in ("retire_after", "fallbacks_key"):
        if getattr(secret, name) is not None and not secret.keyring:
            raise VaultConfigError(f"{name!r} is for a key ring: add 'keyring': True.")

    seconds = secret.retire_after

    if seconds is not None and not isinstance(seconds, datetime.timedelta):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise VaultConfigError("'retire_after' is a number of seconds.")

    if seconds is not None and not _as_timedelta(seconds):
        raise VaultConfigError(
            "'retire_after' is a number of seconds above 0, at most 10 years: what the"
            " old value has signed would be refused at once."
        )

    key = secret.fallbacks_key

    if key is not None and (
        not isinstance(key, str)
        or not _CONFIG_KEY.match(key)
        or key.startswith("VAULT_")
    ):
        raise VaultConfigError(
            "'fallbacks_key' is a config key in upper case, such as"
            " 'SECRET_KEY_FALLBACKS'."
        )

    if secret.keyring and secret.version is not None:
        raise VaultConfigError(
            "'version' pins one value and 'keyring' is for several: keep one."
        )


def _as_timedelta(value: float | datetime.timedelta) -> datetime.timedelta | None:
    try:
        length = (
            value
            if isinstance(value, datetime.timedelta)
            else datetime.timedelta(seconds=value)
        )
    except (ValueError, OverflowError):
        return None

    good = datetime.timedelta(0) < length <= datetime.timedelta(days=3660)
    return length if good else None


def _lower_names(raw: cabc.Mapping[t.Any, t.Any]) -> dict[str, t.Any]:
    """Environment variables are upper case: FLASK_VAULT_SECRETS__DB__REF=database."""
    names: dict[str, t.Any] = {}

    for name, value in raw.items():
        text = str(name)
        names[text.lower() if text.isupper() else text] = value

    return names


def _did_you_mean(word: str, known: cabc.Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
