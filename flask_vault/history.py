"""The versions of a document that its key rings need, and how to keep up with them."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import logging

from .errors import SecretNotFoundError
from .errors import SecretVersionError
from .errors import VaultPermissionError
from .vault.documents import Document
from .vault.documents import Location
from .vault.documents import parse_time
from .vault.documents import Stamp
from .vault.kv import KV
from .vault.versions import Versions

_log = logging.getLogger("flask_vault")


@dataclasses.dataclass(frozen=True)
class Need:
    """What one key ring needs of a history.

    :param holds: whether a document has a usable value for the ring.
    :param memory: how long a value is of use after the next one was written.
    """

    holds: cabc.Callable[[Document], bool]
    memory: datetime.timedelta


@dataclasses.dataclass(frozen=True)
class History:
    """What is known of a document's versions.

    :param stamps: oldest first.
    :param documents: by version, those that a ring needs.
    :param told: by the metadata. Else by the data alone, which does not tell that an
        older version was deleted.
    :param max_versions: how many the document keeps, where it says so itself.
    """

    stamps: tuple[Stamp, ...]
    documents: cabc.Mapping[int, Document] = dataclasses.field(repr=False)
    told: bool = True
    max_versions: int | None = None

    @classmethod
    def of_documents(cls, documents: cabc.Iterable[Document]) -> History:
        """The history that documents tell, which an earlier start has kept."""
        ordered = sorted(documents, key=lambda document: document.version or 0)
        return cls(
            tuple(_stamp_of(document) for document in ordered),
            {_stamp_of(document).number: document for document in ordered},
            told=False,
        )

    @property
    def newest(self) -> Stamp:
        return self.stamps[-1]

    def at_least(self, now: datetime.datetime) -> datetime.datetime:
        """The time, or that of the newest version when it lies ahead.

        What we know of the server's clock is cut to a second.
        """
        return max(now, self.newest.created)

    def gone(self, now: datetime.datetime) -> SecretVersionError | None:
        """Why there is no newest document, when there is none."""
        stamp = self.newest

        if not stamp.is_gone(now):
            return None

        return SecretVersionError(
            f"Version {stamp.number} was"
            + (
                " destroyed: write a new one."
                if stamp.destroyed
                else " deleted, and is served from memory: undelete it with 'vault kv"
                " undelete', or write a new one. To have it accepted no more, destroy"
                " it."
            )
        )


class Historian:
    """Reads histories, and of one that is known only what is new."""

    def __init__(self, kv: KV, versions: Versions) -> None:
        self._kv = kv
        self._versions = versions
        self._blind: set[Location] = set()

    def of(
        self,
        location: Location,
        needs: cabc.Sequence[Need],
        before: History | None = None,
        newest: Document | None = None,
    ) -> History:
        """The history of a document now.

        :param before: what was known; it is returned itself when nothing is new.
        :param newest: the newest document, when it has just been read.
        :raises VaultConfigError: on KV v1.
        :raises VaultError: when a version that a ring needs cannot be had.
        """
        try:
            metadata = self._versions.of(location, retry=before is None)
        except VaultPermissionError as error:
            if location not in self._blind:
                self._blind.add(location)
                _log.warning(
                    "The key ring of %r goes by its data alone, so a version that is"
                    " deleted or destroyed stays accepted for its time: %s",
                    location.path,
                    error,
                )

            return self._by_data(location, needs, before, newest)

        self._blind.discard(location)
        stamps = metadata.stamps

        if before is not None:
            if before.told and _is_behind(stamps, before.stamps):
                return before

            stamps = _sticky(stamps, before.stamps)

            if stamps == before.stamps and before.told:
                return before

        read = _Reading(self._kv, location, before, newest)
        documents = _walk(read, stamps, needs, self._kv.now())
        return History(stamps, documents, True, metadata.max_versions)

    def _by_data(
        self,
        location: Location,
        needs: cabc.Sequence[Need],
        before: History | None,
        newest: Document | None,
    ) -> History:
        if newest is None:
            newest = self._kv.read(location, retry=before is None)

        stamp = _stamp_of(newest)

        if before is not None:
            last = before.newest

            if last.number == stamp.number and last.created == stamp.created:
                return before

            if stamp.number <= last.number and stamp.created <= last.created:
                return before

        read = _Reading(self._kv, location, before, newest)
        stamps = [stamp]
        documents = {stamp.number: newest}
        boundaries = [stamp.created if need.holds(newest) else None for need in needs]
        now = self._kv.now()

        while stamps[0].number > 1 and _is_needed(needs, boundaries, now):
            number = stamps[0].number - 1

            try:
                older = read(number)
            except SecretNotFoundError as error:
                created = read.created_of(error)

                # It is not kept any more, nor is any one before it.
                if created is None:
                    break

                stamps.insert(0, Stamp(number, created, destroyed=True))
                boundaries = [created] * len(needs)
                continue

            stamps.insert(0, _stamp_of(older))
            documents[number] = older
            boundaries = [
                stamps[0].created if need.holds(older) else boundary
                for need, boundary in zip(needs, boundaries, strict=True)
            ]

        return History(tuple(stamps), documents, told=False)


class _Reading:
    """Reads one version, from what is known when that is enough."""

    def __init__(
        self,
        kv: KV,
        location: Location,
        before: History | None,
        newest: Document | None,
    ) -> None:
        self._kv = kv
        self._location = location
        self._known = dict(before.documents) if before is not None else {}

        if newest is not None and newest.version is not None:
            self._known[newest.version] = newest

        # What an earlier start has kept is asked for anew.
        self._known = {n: d for n, d in self._known.items() if d.origin == "vault"}

    def knows(self, stamp: Stamp) -> bool:
        """Whether a version is there without asking."""
        known = self._known.get(stamp.number)
        return known is not None and known.created == stamp.created

    def __call__(
        self, number: int, created: datetime.datetime | None = None
    ) -> Document:
        known = self._known.get(number)

        # After a key was made anew the numbers begin again.
        if known is not None and created in (None, known.created):
            return known

        place = dataclasses.replace(self._location, version=number)
        return self._kv.read(place, retry=False)

    @staticmethod
    def created_of(error: SecretNotFoundError) -> datetime.datetime | None:
        return parse_time(error.metadata or {})


def _walk(
    read: _Reading,
    stamps: cabc.Sequence[Stamp],
    needs: cabc.Sequence[Need],
    now: datetime.datetime,
) -> dict[int, Document]:
    """Read backwards, as far as a ring may need it."""
    documents: dict[int, Document] = {}
    boundaries: list[datetime.datetime | None] = [None] * len(needs)

    for stamp in reversed(stamps):
        # One that can be used there must be, however old it is.
        if documents and not _is_needed(needs, boundaries, now):
            break

        newest = stamp is stamps[-1]
        gone = stamp.is_gone(now)

        # One that was deleted last is served from memory, see History.gone().
        if stamp.destroyed or (gone and not (newest and read.knows(stamp))):
            boundaries = [stamp.created] * len(needs)
            continue

        try:
            document = read(stamp.number, stamp.created)
        except SecretNotFoundError:
            # Destroyed since the metadata was read, or not at this standby yet.
            if newest:
                raise

            boundaries = [stamp.created] * len(needs)
            continue

        documents[stamp.number] = document
        boundaries = [
            stamp.created if need.holds(document) else boundary
            for need, boundary in zip(needs, boundaries, strict=True)
        ]

    return documents


def _is_needed(
    needs: cabc.Sequence[Need],
    boundaries: cabc.Sequence[datetime.datetime | None],
    now: datetime.datetime,
) -> bool:
    """Whether a ring may accept a version that is older than these."""
    return any(
        boundary is None or boundary + need.memory > now
        for need, boundary in zip(needs, boundaries, strict=True)
    )


def _is_behind(stamps: cabc.Sequence[Stamp], known: cabc.Sequence[Stamp]) -> bool:
    """Whether an answer is from before what is known, as from a standby that lags."""
    new, old = stamps[-1], known[-1]
    return new.number < old.number and new.created <= old.created


def _sticky(
    stamps: cabc.Sequence[Stamp], known: cabc.Sequence[Stamp]
) -> tuple[Stamp, ...]:
    """What was destroyed once stays so, whatever a standby that lags says."""
    destroyed = {(s.number, s.created) for s in known if s.destroyed}
    return tuple(
        dataclasses.replace(stamp, destroyed=True)
        if (stamp.number, stamp.created) in destroyed
        else stamp
        for stamp in stamps
    )


def _stamp_of(document: Document) -> Stamp:
    if document.version is None or document.created is None:
        raise SecretVersionError(
            f"The answer for {document.path!r} does not tell when its version was made:"
            " a key ring needs KV version 2.",
            path=document.path,
        )

    return Stamp(document.version, document.created)
