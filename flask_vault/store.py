"""Documents held in memory: for how long, fetched by whom, and what when none comes."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import copy
import dataclasses
import logging
import threading
import time
import typing as t

from .errors import VaultError
from .errors import without_frames
from .history import History
from .vault.documents import Document
from .vault.documents import Location
from .vault.kv import KV
from .vault.process import PerProcess
from .vault.process import SingleFlight

#: Seconds in which a failed read of a path is not tried again while it has a value.
RETRY_PAUSE: t.Final = 1.0

#: Most reads at a time when many documents are loaded.
PARALLEL: t.Final = 8

_log = logging.getLogger("flask_vault")


@dataclasses.dataclass(frozen=True)
class Held:
    """A document, and the monotonic time at which its read began."""

    document: Document
    since: float
    #: Of a path with a key ring, once it was read.
    history: History | None = None


class Snapshot(dict[Location, Held]):
    """Every document held at one moment. Never changed, only replaced by another.

    A ``dict`` for its speed.
    """

    def having(self, location: Location, held: Held) -> Snapshot:
        """A copy with one document more."""
        return Snapshot({**self, location: held})


@dataclasses.dataclass
class _Sync:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    flights: SingleFlight = dataclasses.field(default_factory=SingleFlight)


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: VaultError
    retry_at: float


class Store:
    """A TTL cache of documents that fetches each once, however many threads ask.

    :param ttl: seconds for which a document is served without asking; 0 always asks.
    :param max_stale: seconds for which a document that is too old goes on serving when
        a new read fails (``stale-if-error`` of RFC 5861).
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        kv: KV,
        *,
        ttl: float,
        max_stale: float,
        clock: cabc.Callable[[], float] = time.monotonic,
    ) -> None:
        self._kv = kv
        self._ttl = ttl
        self._max_stale = max_stale
        self._clock = clock
        self._sync: PerProcess[_Sync] = PerProcess(_Sync)
        self._failures: dict[Location, _Failure] = {}
        self.snapshot = Snapshot()

    @property
    def failing(self) -> dict[Location, VaultError]:
        """The locations that are served stale, since their last read failed, and how.

        One that is too old to be served counts no more.
        """
        # A copy in one step: other threads write to it.
        failures = dict(self._failures)
        return {
            place: failure.error
            for place, failure in failures.items()
            if (held := self.snapshot.get(place)) and self._may_serve(held)
        }

    def is_fresh(self, held: Held) -> bool:
        """Whether a document is young enough to be served without asking."""
        return self._clock() - held.since < self._ttl

    def _may_serve(self, held: Held) -> bool:
        return self._clock() - held.since < self._ttl + self._max_stale

    def read(self, location: Location, *, use_cache: bool = True) -> Document:
        """The document at a location.

        :param use_cache: ``False`` asks the server, and raises what it raises.
        :raises VaultError: when there is no document, fresh or stale, to serve.
        """
        if not use_cache:
            return self._fetch(location)

        held = self.snapshot.get(location)

        if held is None:
            return self._shared_fetch(location)

        if self.is_fresh(held):
            return held.document

        failure = self._failures.get(location)

        if failure is not None:
            flights = self._sync.get().flights

            # One thread finds out whether the server is back; the others do not wait.
            if failure.retry_at > self._clock() or flights.is_flying(location):
                return self._stale(held, failure.error)

        try:
            return self._shared_fetch(location)
        except VaultError as error:
            return self._stale(held, error)

    def read_many(
        self, locations: cabc.Iterable[Location]
    ) -> dict[Location, Document | VaultError]:
        """Ask the server for many documents, several at a time."""
        places = list(dict.fromkeys(locations))

        def fetch(place: Location) -> Document | VaultError:
            try:
                return self._shared_fetch(place)
            except VaultError as error:
                return error

        if len(places) <= 1:
            return {place: fetch(place) for place in places}

        with concurrent.futures.ThreadPoolExecutor(
            min(PARALLEL, len(places)), thread_name_prefix="flask-vault-load"
        ) as pool:
            return dict(zip(places, pool.map(fetch, places), strict=True))

    def put(self, location: Location, document: Document) -> None:
        """Hold a document that this process has just written."""
        self._hold(location, document, self._clock())

    def put_stale(self, location: Location, document: Document) -> None:
        """Hold a document that serves until it can be read."""
        self._hold(location, document, self._clock() - self._ttl)

    def adopt(self, found: cabc.Mapping[Location, Held]) -> None:
        """Hold what a poll has found and judged, all of it at once."""
        with self._sync.get().lock:
            kept = dict(self.snapshot)

            for location, new in found.items():
                held = kept.get(location)
                self._failures.pop(location, None)

                # Written by this process while the poll was on its way.
                if held is not None and new.document.is_older_than(held.document):
                    new = dataclasses.replace(
                        new, document=held.document, since=held.since
                    )

                kept[location] = new

            self.snapshot = Snapshot(kept)

    def clear(self) -> None:
        """Forget every document, the stale ones too."""
        with self._sync.get().lock:
            self.snapshot = Snapshot()
            self._failures.clear()

    # --- parts -----------------------------------------------------------------------

    def _shared_fetch(self, location: Location) -> Document:
        def work() -> Document:
            held = self.snapshot.get(location)

            # A flight may have landed between this caller's look and its take-off.
            if held is not None and self.is_fresh(held):
                return held.document

            # With something to serve there is no need to try twice, and to wait twice.
            document = self._fetch(location, retry=held is None)
            held = self.snapshot.get(location)
            return document if held is None else held.document

        return self._sync.get().flights.do(location, work)

    def _fetch(self, location: Location, *, retry: bool = True) -> Document:
        # Before the request: the value is at least as old as the question.
        began = self._clock()

        try:
            document = self._kv.read(location, retry=retry)
        except VaultError as error:
            self._failed(location, error)
            raise

        self._hold(location, document, began)
        return document

    def _hold(self, location: Location, document: Document, since: float) -> None:
        """Hold a document, unless a newer one is there."""
        with self._sync.get().lock:
            held = self.snapshot.get(location)
            self._failures.pop(location, None)

            # An answer that was long on its way.
            if held is not None and held.since > since:
                return

            # A standby that lags behind, or a server that was restored to an old state.
            if held is not None and document.is_older_than(held.document):
                _log.warning(
                    "Vault serves version %s of %r after version %s, which is kept"
                    " until the process starts anew or clears its cache.",
                    document.version,
                    location.path,
                    held.document.version,
                )
                document = held.document

            history = None if held is None else held.history
            self.snapshot = self.snapshot.having(
                location, Held(document, since, history)
            )

    def _failed(self, location: Location, error: VaultError) -> None:
        held = self.snapshot.get(location)

        # Without a document there is nothing that could be stale.
        if held is None:
            return

        kept = without_frames(copy.copy(error))

        with self._sync.get().lock:
            self._failures[location] = _Failure(kept, self._clock() + RETRY_PAUSE)

        _log.warning(
            "The document %r is served %d seconds old, since a new read failed: %s",
            location.path,
            self._clock() - held.since,
            error,
        )

    def _stale(self, held: Held, error: VaultError) -> Document:
        if self._may_serve(held):
            return held.document

        # Each thread gets one of its own: a raise writes to it.
        raise copy.copy(error)
