"""What an entry's config value is, and what serves when Vault does not give it."""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import datetime
import logging
import typing as t

from .entries import Entry
from .entries import MISSING
from .errors import SecretNotFoundError
from .errors import SecretValueError
from .errors import VaultConfigError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultPermissionError
from .errors import VaultUnavailableError
from .errors import without_frames
from .values import cast
from .values import resolve
from .vault.documents import Document

_log = logging.getLogger("flask_vault")

Source = t.Literal["vault", "cache", "env", "default", "unset"]

#: Raises a :exc:`ValueError` for a value that is of no use.
Check = cabc.Callable[[t.Any], None]

#: The worst first: what is raised when several entries fail for several reasons.
_GRAVITY: t.Final = (
    VaultLoginError,
    VaultPermissionError,
    VaultConfigError,
    SecretValueError,
    SecretNotFoundError,
    VaultUnavailableError,
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one entry.

    :param source: ``unset`` when nothing serves: an error, or ``required=False``.
    :param error: why the value is not Vault's.
    :param fatal: the app must not start with it.
    """

    entry: Entry
    source: Source
    value: t.Any = dataclasses.field(default=None, repr=False)
    version: int | None = None
    created: datetime.datetime | None = None
    error: VaultError | None = None
    fatal: bool = False

    def without_value(self) -> Outcome:
        """The same, to be kept where nobody needs the value."""
        return dataclasses.replace(self, value=None)


def resolve_entry(
    entry: Entry,
    found: Document | VaultError,
    environ: cabc.Mapping[str, str],
    checks: cabc.Iterable[Check] = (),
) -> Outcome:
    """Make the value of an entry, from Vault, its ``env``, or its ``default``.

    A denial, a refused login or a malformed value never falls back on its own: a
    default used in silence is a known key. Only ``required=False`` allows it.
    """
    try:
        if isinstance(found, VaultError):
            raise found

        return from_document(entry, found, checks)
    except VaultError as error:
        return _fall_back(entry, error, environ)


def from_document(
    entry: Entry, document: Document, checks: cabc.Iterable[Check] = ()
) -> Outcome:
    """Make the value of an entry from its document, and from nothing else.

    :param checks: raise a :exc:`ValueError` for a value that is of no use; its text
        goes into a message, so it must not hold the value.
    :raises VaultError: when there is none, or it is of no use.
    """
    value = resolve(entry, document.data, document.path)
    check_key(entry.key, value)
    where = f"{document.path}#{entry.reference.field or '*'}"

    if entry.secret.keyring and not (
        value.strip() if isinstance(value, str) else value
    ):
        raise SecretValueError(
            f"The value of {where!r} is empty, and everybody could sign with it: write"
            " a new one with 'flask vault rotate' or 'flask vault set'.",
            path=where,
        )

    for check in checks:
        try:
            check(value)
        except ValueError as error:
            problem = str(error)
        except Exception as error:
            # Another's bug must not hold up the other entries.
            problem = f"its check failed with {type(error).__name__}"
        else:
            continue

        raise SecretValueError(
            f"The value of {where!r} is of no use for {entry.key}: {problem}",
            path=where,
        )

    return Outcome(entry, document.origin, value, document.version, document.created)


def check_key(key: str, value: t.Any) -> None:
    """Refuse a value that Flask takes for something else.

    Of a text in ``SECRET_KEY_FALLBACKS`` each letter is a key, which anybody guesses.

    :raises SecretValueError: naming the cure.
    """
    if key == "SECRET_KEY_FALLBACKS" and not isinstance(value, list | tuple):
        raise SecretValueError(
            "The value must be a list, or Flask takes each letter for a key: store"
            " a JSON list, and add 'cast': 'json' to the entry."
        )


def _fall_back(
    entry: Entry, error: VaultError, environ: cabc.Mapping[str, str]
) -> Outcome:
    # It is kept for as long as the app lives, and so would its frames be.
    error = without_frames(error)
    lenient = isinstance(error, VaultUnavailableError | SecretNotFoundError)

    if lenient:
        try:
            served = from_environment(entry, environ)
        except VaultError as unusable:
            return Outcome(entry, "unset", error=without_frames(unusable), fatal=True)

        if served is not None:
            _log.warning(
                "%s comes from the environment's %s, since Vault did not give it: %s",
                entry.key,
                entry.secret.env,
                error,
            )
            return dataclasses.replace(served, error=error)

    if isinstance(error, VaultLoginError):
        return Outcome(entry, "unset", error=error, fatal=True)

    if entry.secret.default is not MISSING and (lenient or not entry.secret.required):
        _log.warning(
            "%s has its default, since Vault did not give it: %s", entry.key, error
        )
        default = copy.deepcopy(entry.secret.default)
        return Outcome(entry, "default", default, error=error)

    if entry.secret.required:
        return Outcome(entry, "unset", error=error, fatal=True)

    _log.warning("%s is not set, since Vault did not give it: %s", entry.key, error)
    return Outcome(entry, "unset", error=error)


def without_vault(
    entry: Entry, environ: cabc.Mapping[str, str], present: t.Any
) -> Outcome:
    """The value of an entry when ``VAULT_ENABLED`` is false.

    :param present: what the app's config holds already, which a test may have set.
    """
    try:
        served = from_environment(entry, environ)
    except VaultError as unusable:
        return Outcome(entry, "unset", error=without_frames(unusable), fatal=True)

    if served is not None:
        return served

    if present is not None:
        return Outcome(entry, "default", present)

    if entry.secret.default is not MISSING:
        return Outcome(entry, "default", copy.deepcopy(entry.secret.default))

    return Outcome(entry, "unset")


def from_environment(entry: Entry, environ: cabc.Mapping[str, str]) -> Outcome | None:
    """The value from the entry's environment variable, when that is set."""
    name = entry.secret.env
    raw = environ.get(name) if name else None

    if not raw:
        return None

    # A template is over a document; its variable holds the finished text.
    value = cast(raw, entry.secret.cast, f"the environment's {name}", home="there")
    check_key(entry.key, value)
    return Outcome(entry, "env", value)


def failure_of(outcomes: cabc.Iterable[Outcome]) -> VaultError | None:
    """One exception for all fatal outcomes, of the gravest type among them."""
    fatal = [o for o in outcomes if o.fatal and o.error is not None]

    if not fatal:
        return None

    reasons: dict[str, list[str]] = {}

    for outcome in fatal:
        reasons.setdefault(str(outcome.error), []).append(outcome.entry.key)

    worst = min((t.cast(VaultError, o.error) for o in fatal), key=_gravity)
    message = " ".join(
        f"{', '.join(keys)}: {reason}" for reason, keys in reasons.items()
    )
    return type(worst)(
        message, status=worst.status, path=worst.path, errors=worst.errors
    )


def _gravity(error: VaultError) -> int:
    for rank, kind in enumerate(_GRAVITY):
        if isinstance(error, kind):
            return rank

    return 0
