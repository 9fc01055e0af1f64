"""The key rings that an app's entries ask for, made from the histories of its paths."""

from __future__ import annotations

import collections.abc as cabc
import datetime
import logging
import typing as t

from .entries import Entry
from .errors import VaultConfigError
from .errors import VaultError
from .history import History
from .history import Need
from .keyring import compute
from .keyring import KeyRing
from .keyring import UNKNOWN
from .keyring import Version
from .resolve import Check
from .resolve import from_document
from .vault.documents import Document
from .vault.documents import Location

#: Flask-JWT-Extended's own, for keys that the app's config does not have (yet).
_JWT_LIFETIMES: t.Final = {
    "JWT_ACCESS_TOKEN_EXPIRES": datetime.timedelta(minutes=15),
    "JWT_REFRESH_TOKEN_EXPIRES": datetime.timedelta(days=30),
}
_JWT_KEYS: t.Final = frozenset({"JWT_SECRET_KEY", "JWT_PRIVATE_KEY"})

#: Flask's own, for ``PERMANENT_SESSION_LIFETIME``.
_SESSION_LIFETIME: t.Final = datetime.timedelta(days=31)

_log = logging.getLogger("flask_vault")


class RingMaker:
    """Makes rings, all with the same propagation window.

    :param places: where the document of each entry is.
    :param window: ``VAULT_PROPAGATION_WINDOW`` in seconds.
    :param config: the app's, for the lifetimes of what is signed.
    :param checks: by config key, what a value must pass.
    :raises VaultConfigError: when a lifetime has no end.
    """

    def __init__(
        self,
        places: cabc.Mapping[str, Location],
        entries: cabc.Iterable[Entry],
        window: float,
        config: cabc.Mapping[str, t.Any],
        checks: cabc.Mapping[str, cabc.Sequence[Check]],
    ) -> None:
        self._window = datetime.timedelta(seconds=window)
        self._checks = checks
        self._retire_after: dict[str, datetime.timedelta] = {}
        self.entries: dict[Location, list[Entry]] = {}
        self._too_short: set[Location] = set()

        for entry in entries:
            if entry.secret.keyring:
                self._retire_after[entry.key] = _retire_after(entry, config)
                self.entries.setdefault(places[entry.key], []).append(entry)

    def needs(self, location: Location) -> tuple[Need, ...]:
        """What the rings of a path need of its history; nothing without a ring."""
        return tuple(
            Need(
                lambda document, entry=entry: self._value(entry, document) is not None,  # type: ignore[misc]
                self._window + self._retire_after[entry.key],
            )
            for entry in self.entries.get(location, ())
        )

    def make(
        self, location: Location, history: History, now: datetime.datetime
    ) -> dict[str, KeyRing]:
        """The rings of a path, by config key; of an entry without a value none."""
        rings: dict[str, KeyRing] = {}
        now = history.at_least(now)

        for entry in self.entries.get(location, ()):
            try:
                rings[entry.key] = compute(
                    self._versions(entry, history, now),
                    now,
                    propagation_window=self._window,
                    retire_after=self._retire_after[entry.key],
                )
            except LookupError:
                continue

        return rings

    def is_cramped(
        self, location: Location, history: History, now: datetime.datetime, limit: int
    ) -> bool:
        """Whether the next write drops a version that a ring still accepts.

        :param limit: how many versions the document keeps.
        """
        stamps = history.stamps
        memory = max(need.memory for need in self.needs(location))
        return 1 < limit <= len(stamps) and stamps[1].created + memory > now

    def tell_cramped(self, location: Location, limit: int) -> None:
        """Warn, once, that fewer versions are kept than the rings need."""
        if location in self._too_short:
            return

        self._too_short.add(location)
        keys = ", ".join(entry.key for entry in self.entries[location])
        _log.warning(
            "The document %r keeps %d versions, and is written so often that the next"
            " write drops one that the key ring of %s still accepts: what it has signed"
            " will be refused. Raise 'max_versions' in its metadata; 'flask vault init'"
            " and 'flask vault rotate' do it where they may.",
            location.path,
            limit,
            keys,
        )

    # --- parts -----------------------------------------------------------------------

    def _versions(
        self, entry: Entry, history: History, now: datetime.datetime
    ) -> cabc.Iterator[Version]:
        for stamp in history.stamps:
            document = history.documents.get(stamp.number)

            # What nobody could use was never in use. Workers kept what they had.
            if document is not None and self._value(entry, document) is None:
                continue

            value = UNKNOWN if document is None else self._value(entry, document)
            deleted = stamp.created if stamp.is_gone(now) else stamp.deleted

            # One that was deleted last is served on, see History.gone().
            if stamp is history.newest:
                deleted = None

            yield Version(stamp.number, stamp.created, value, deleted, stamp.destroyed)

    def _value(self, entry: Entry, document: Document) -> t.Any:
        try:
            checks = self._checks.get(entry.key, ())
            return from_document(entry, document, checks).value
        except VaultError:
            return None


def _retire_after(entry: Entry, config: cabc.Mapping[str, t.Any]) -> datetime.timedelta:
    given = entry.secret.retire_after

    if given is not None:
        return _timedelta(given)

    if entry.key in _JWT_KEYS:
        lifetimes = [
            config.get(key, default) for key, default in _JWT_LIFETIMES.items()
        ]

        if any(lifetime is False for lifetime in lifetimes):
            raise VaultConfigError(
                f"VAULT_SECRETS[{entry.key!r}]: tokens never expire, so an old key"
                " would be accepted for ever: add 'retire_after', in seconds, or set"
                f" {' and '.join(_JWT_LIFETIMES)} to a time."
            )

        return max(_timedelta(lifetime) for lifetime in lifetimes)

    return _timedelta(config.get("PERMANENT_SESSION_LIFETIME") or _SESSION_LIFETIME)


def _timedelta(value: t.Any) -> datetime.timedelta:
    if isinstance(value, datetime.timedelta):
        return value

    # dateutil's, which Flask-JWT-Extended takes as well, has no length of its own.
    if not isinstance(value, int | float):
        start = datetime.datetime(2000, 1, 1)
        return t.cast(datetime.timedelta, (start + value) - start)

    return datetime.timedelta(seconds=value)
