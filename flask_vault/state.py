"""What Flask-Vault keeps for one app, in ``app.extensions["vault"]``."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
import typing as t

from flask import current_app
from flask import Flask
from flask import g

from . import candidates
from .client import Pin
from .client import VaultClient
from .config_writer import Follower
from .entries import Entry
from .errors import SecretNotFoundError
from .errors import VaultConfigError
from .errors import VaultConnectionError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultRateLimitedError
from .errors import VaultSealedError
from .errors import without_frames
from .history import History
from .invocation import MODE
from .keyring import KeyRing
from .live import Learned
from .live import LiveConfig
from .observing import take_over
from .refresher import Refresher
from .resolve import Check
from .resolve import failure_of
from .resolve import Outcome
from .resolve import resolve_entry
from .resolve import without_vault
from .rotation.runner import Rotated
from .settings import Settings
from .signals import secrets_loaded
from .store import Held
from .store import PARALLEL
from .telling import Hook
from .telling import Teller
from .vault.documents import Document
from .vault.documents import Location
from .vault.process import PerProcess
from .vault.versions import DEFAULT_LIMIT

if t.TYPE_CHECKING:
    from werkzeug.local import LocalProxy

_log = logging.getLogger("flask_vault")

#: ``g`` itself. An attribute read through the proxy costs ten times as much.
_present_g = t.cast("LocalProxy[t.Any]", g)._get_current_object

#: What is wrong with all paths when it is wrong with one.
_OF_THE_SERVER: t.Final = (
    VaultConnectionError,
    VaultSealedError,
    VaultRateLimitedError,
    VaultLoginError,
)


@dataclasses.dataclass(frozen=True)
class Refreshed:
    """What a refresh has brought.

    :param changed: the config keys with another value in Vault.
    :param errors: what went wrong, by mount and path. What was there is kept.
    """

    changed: tuple[str, ...] = ()
    errors: cabc.Mapping[str, VaultError] = dataclasses.field(default_factory=dict)


class AppState:
    """The client of an app, its entries, and what became of them."""

    def __init__(
        self, app: Flask, settings: Settings, entries: tuple[Entry, ...]
    ) -> None:
        self.app = app
        self.settings = settings
        self.entries = entries
        self.observers = take_over(app.extensions)
        self.client = VaultClient(
            settings, entries, pin=self._pin, observers=self.observers
        )
        self.client.on_rotated(self._rotated)
        self.loaded = False
        self.live = LiveConfig(
            app.config,
            entries,
            {entry.key: self.client.catalog.location_of(entry) for entry in entries},
            settings.propagation_window,
        )
        self.teller = Teller(app, self.observers, lambda: self.refresher.is_here())
        self.refresher = Refresher(
            self,
            mode=settings.refresh_mode if settings.enabled else "off",
            interval=settings.refresh_interval,
            window=settings.propagation_window,
            on_failure=self.teller.failed,
            on_recovery=self.teller.recovered,
            on_round=self.observers.refreshed,
        )
        self._entry = {entry.key: entry for entry in entries}
        self._lock: PerProcess[threading.RLock] = PerProcess(threading.RLock)
        #: With which path a round begins.
        self._first = 0
        #: Monotonic time at which the rings were known to be up to date.
        self._seen_at: float | None = None
        # What the last asking brought, until the start is known to be good.
        self._found: dict[Location, Document | VaultError] = {}
        self._held: dict[Location, Held] = {}

    @property
    def outcomes(self) -> cabc.Mapping[str, Outcome]:
        """By config key; without the values, which are in ``app.config``."""
        return self.live.outcomes

    # --- start -----------------------------------------------------------------------

    def load(self, patience: float = 0.0) -> None:
        """Read all entries, and only when all required ones are good, set the config.

        :param patience: seconds to wait for a server that does not answer.
        :raises VaultError: for those that are not.
        """
        with self.observers.span(
            "load", entries=len(self.entries), paths=len(self.live.places)
        ):
            outcomes = self.resolve(patience)
            failure = failure_of(outcomes)

            if failure is not None:
                raise failure

        with self._lock.get():
            now = self.client.now() if self.settings.enabled else None
            self.live.start(outcomes, self._held, now)

        self.loaded = True

        if self.settings.enabled:
            self._seen_at = time.monotonic()
            self.refresher.loaded(self.client.transport.fresh_at)
            self._keep_for_restart(self._found)

        self._found, self._held = {}, {}

        self.teller.signal(
            secrets_loaded,
            keys=tuple(o.entry.key for o in outcomes if o.source != "unset"),
            sources={o.entry.key: o.source for o in outcomes},
        )

    def resolve(self, patience: float = 0.0) -> list[Outcome]:
        """Ask for every entry, and note what became of it. The config stays."""
        if self.settings.enabled:
            found = self._found = self.client.load(patience)
            outcomes = [
                resolve_entry(
                    entry, found[self.client.catalog.location_of(entry)], os.environ
                )
                for entry in self.entries
            ]
            self._held = {
                place: Held(document, 0.0)
                for place in self.live.places
                if isinstance(document := found[place], Document)
            }
            outcomes = self._with_histories(outcomes, found)
        else:
            outcomes = [
                without_vault(entry, os.environ, self.app.config.get(entry.key))
                for entry in self.entries
            ]
            unset = [o.entry.key for o in outcomes if o.source == "unset"]

            if unset:
                _log.warning(
                    "VAULT_ENABLED is False, and nothing serves for %s: set their 'env'"
                    " or 'default' when the app needs them.",
                    ", ".join(unset),
                )

        self.live.outcomes = {o.entry.key: o.without_value() for o in outcomes}
        return outcomes

    def _with_histories(
        self,
        outcomes: list[Outcome],
        found: cabc.Mapping[Location, Document | VaultError],
    ) -> list[Outcome]:
        """Read the versions that key rings need."""
        wanted = [
            place
            for place in self._held
            if self.live.needs(place)
            and any(
                o.source in {"vault", "cache"}
                for o in outcomes
                if o.entry.secret.keyring and self._place(o.entry) == place
            )
        ]
        broken: dict[Location, VaultError] = {}

        def read(place: Location) -> Held | VaultError:
            held = self._held[place]

            if held.document.origin == "cache":
                kept = [
                    document
                    for other, document in found.items()
                    if isinstance(document, Document) and other.path == place.path
                ]
                return dataclasses.replace(held, history=History.of_documents(kept))

            try:
                return self.client.poll(place, self.live.needs(place), held)
            except VaultError as error:
                return without_frames(error)

        for place, held in _in_parallel(read, wanted):
            if isinstance(held, Held):
                self._held[place] = held
            else:
                broken[place] = held

        self.client.adopt(
            {
                place: held
                for place in wanted
                if (held := self._held[place]).document.origin == "vault"
            }
        )
        return [
            dataclasses.replace(
                outcome, source="unset", value=None, error=broken[place], fatal=True
            )
            if outcome.entry.secret.keyring
            and (place := self._place(outcome.entry)) in broken
            and outcome.source in {"vault", "cache"}
            else outcome
            for outcome in outcomes
        ]

    # --- key rings -------------------------------------------------------------------

    def has_ring(self, key: str) -> bool:
        """Whether the entry of a config key has ``keyring``."""
        entry = self._entry.get(key)
        return entry is not None and entry.secret.keyring

    def keyring(self, key: str) -> KeyRing:
        """The key ring of a config key, the same one for a whole app context.

        :raises VaultConfigError: when there is none.
        """
        pin = self._pin()

        if pin is None:
            return self.current_ring(key)

        if pin.rings is None:
            pin.rings = self.live.rings

        ring = pin.rings.get(key)
        return self.current_ring(key) if ring is None else ring

    def current_ring(self, key: str) -> KeyRing:
        """The key ring of a config key as it is now.

        :raises VaultConfigError: when there is none.
        """
        ring = self.live.rings.get(key)

        if ring is not None:
            return ring

        if key not in self._entry:
            raise VaultConfigError(
                f"There is no entry {key!r} in VAULT_SECRETS, so it has no key ring:"
                " declare it with 'keyring': True."
            )

        if not self.has_ring(key):
            raise VaultConfigError(
                f"VAULT_SECRETS[{key!r}] has no key ring: add 'keyring': True."
            )

        raise VaultConfigError(
            f"{key} has no value, so its key ring is empty: see 'flask vault status'."
        )

    def candidates(self, key: str) -> tuple[t.Any, ...]:
        """The values of an entry that may let somebody in, the likeliest first.

        :return: at most three. During a rotation one of them is right at any instant.
        """
        ring = self.live.rings.get(key)

        if ring is not None:
            return candidates.of_ring(ring)

        entry = self._entry.get(key)
        place = None if entry is None else self._place(entry)
        held = None if place is None else self.live.applied.get(place)

        if entry is None or held is None:
            present = self.app.config.get(key)
            return () if present is None else (present,)

        before = self.live.before.get(t.cast(Location, place))
        return candidates.of_document(entry, held.document, before)

    def follow(self, key: str, follower: Follower) -> None:
        """Have config values derived from a ring, now and whenever it changes."""
        self.current_ring(key)

        with self._lock.get():
            self.live.follow(key, follower)

    def check_values(self, key: str, check: Check) -> None:
        """Have the values of a config key checked, now and whenever they change.

        :param check: raises a :exc:`ValueError` for a value that is of no use. Its text
            goes into a message and must not hold the value.
        :raises SecretValueError: when the value that is there does not pass.
        """
        with self._lock.get():
            now = self.client.now() if self.settings.enabled else None
            self.live.check_values(key, check, now)

    def on_change(self, keys: cabc.Iterable[str], hook: Hook) -> None:
        """Have a function called when the config has another value for a key.

        It runs in an app context, with the config key and the version. One that raises
        is logged.
        """
        self.teller.on_change(keys, hook)

    # --- refresh ---------------------------------------------------------------------

    def refresh(self) -> Refreshed:
        """Ask for every path once, and take over what is good."""
        if not self.settings.enabled:
            return Refreshed()

        with self.teller.collecting() as changed:
            errors = self.refresher.now()
            self.advance()

        self.teller.tell()
        return Refreshed(tuple(dict.fromkeys(changed)), errors)

    def ask(self) -> bool:
        """Refresh because something unknown was met, see :meth:`Refresher.ask`."""
        if not self.settings.enabled:
            return False

        done = self.refresher.ask()
        self.teller.tell()
        return done

    def start(self) -> None:
        """Start the refresh thread of this process."""
        if self.settings.enabled:
            self.refresher.start()

    @property
    def is_stale(self) -> bool:
        """Whether others may sign with what this process has not heard of.

        That is the case when for longer than the window nothing has proved that it is
        up to date. Without a key ring all paths count, else those of the rings. Nobody
        knows when the app refreshes by itself.
        """
        if not self.settings.enabled or self.refresher.mode == "off":
            return False

        known = self._seen_at, self.refresher.freshness.last_fresh
        oldest = min((at for at in known if at is not None), default=-math.inf)
        return time.monotonic() - oldest > self.settings.propagation_window

    def touch(self) -> None:
        """Have the refresher do its work. Called at the start of each request."""
        self.refresher.touch()
        self.teller.tell()

    def round(self) -> dict[str, VaultError]:
        """Ask for every path once; give what went wrong, by path."""
        with self.observers.span("refresh", paths=len(self.live.places)) as span:
            errors = self._ask_all()
            span.note(errors=len(errors))

            for error in errors.values():
                span.failed(error)
                break

        return errors

    def _ask_all(self) -> dict[str, VaultError]:
        began = time.monotonic()
        bases = self.live.applied
        found: dict[Location, Held] = {}
        errors: dict[str, VaultError] = {}
        places = self.live.places

        for place in (*places[self._first :], *places[: self._first]):
            base = bases.get(place)

            try:
                found[place] = self.client.poll(place, self.live.needs(place), base)
            except VaultError as error:
                of_the_server = isinstance(error, _OF_THE_SERVER)

                # The start was content without it, and the health tells of it.
                if base is not None or not isinstance(error, SecretNotFoundError):
                    errors[place.path] = without_frames(error)

                if of_the_server:
                    # The next round begins with the others.
                    self._first = (places.index(place) + 1) % len(places)
                    break

        learned = self._learn(found, "refresh", bases)
        errors.update({p.path: error for p, error in learned.rejected.items()})
        self.refresher.fresh(self.client.transport.fresh_at)

        if all(p in found and p not in learned.rejected for p in self._watched(bases)):
            self._seen_at = began

        return errors

    def _watched(
        self, applied: cabc.Mapping[Location, Held]
    ) -> cabc.Collection[Location]:
        rings = [place for place in applied if self.live.needs(place)]
        return rings or applied

    def advance(self) -> None:
        """Move the rings whose time has come."""
        with self._lock.get():
            change = self.live.next_change()

            if change is None or change > self.client.now():
                return

            learned = self.live.advance(self.client.now())

        self.teller.learned(learned, "refresh")

    def seconds_to_change(self) -> float:
        """Seconds until a ring moves by time alone."""
        change = self.live.next_change()

        if change is None:
            return math.inf

        return (change - self.client.now()).total_seconds()

    def keep_alive(self) -> float:
        """Look after the token; give the seconds until the next look."""
        return self.client.transport.keep_alive()

    def prove_fresh(self) -> None:
        """Have the active node answer."""
        self.client.transport.prove_fresh()
        self.refresher.fresh(self.client.transport.fresh_at)

    def _learn(
        self,
        found: cabc.Mapping[Location, Held],
        origin: str,
        bases: cabc.Mapping[Location, Held],
    ) -> Learned:
        """Take over what was found.

        :param bases: what was there when it was asked for. A path that has changed
            since, by a rotation of this process, is left for the next round.
        """
        with self._lock.get():
            present = self.live.applied
            found = {
                place: held
                for place, held in found.items()
                if _is_same(present.get(place), bases.get(place))
            }
            learned = self.live.learn(found, self.client.now())
            applied = self.live.applied

        self.client.adopt(
            {
                place: dataclasses.replace(applied[place], since=held.since)
                for place, held in found.items()
                if place in applied
            }
        )

        if learned:
            # The thread sleeps until the change that was the next one before.
            self.refresher.wake()
            # Before what asks the server, or writes a file.
            self.teller.learned(learned, origin)
            self._keep_for_restart({p: held.document for p, held in applied.items()})
            self._look_at_limits(found)

        return learned

    def keep_histories(
        self, places: cabc.Iterable[Location]
    ) -> dict[Location, VaultError]:
        """Have enough versions kept of the documents with a key ring.

        :return: where that could not be done, and why.
        """
        failed: dict[Location, VaultError] = {}

        for place in places:
            if self.live.needs(place):
                try:
                    self.client.keep_history(place)
                except VaultError as error:
                    failed[place] = without_frames(error)

        return failed

    def _look_at_limits(self, found: cabc.Mapping[Location, Held]) -> None:
        for place, held in found.items():
            history = held.history

            if history is None or not self.live.needs(place):
                continue

            stamps = history.stamps
            # A mount that keeps fewer shows it by what it has dropped already.
            default = len(stamps) if stamps[0].number > 1 else DEFAULT_LIMIT
            limit = history.max_versions or default

            if not self.live.maker.is_cramped(place, history, self.client.now(), limit):
                continue

            with contextlib.suppress(VaultError):
                # The mount may say another.
                limit = self.client.versions.limit_of(place)

            if self.live.maker.is_cramped(place, history, self.client.now(), limit):
                self.live.maker.tell_cramped(place, limit)

    def _keep_for_restart(
        self, documents: cabc.Mapping[Location, Document | VaultError]
    ) -> None:
        """Keep the documents, and the older versions that the rings have."""
        older = {
            dataclasses.replace(place, version=number): document
            for place, held in self.live.applied.items()
            if held.history is not None
            for number, document in held.history.documents.items()
        }
        self.client.keep_for_restart({**older, **documents})

    # --- rotations of this process ---------------------------------------------------

    def _rotated(self, rotated: Rotated) -> None:
        place = rotated.location

        if place not in self.live.places:
            return

        bases = self.live.applied
        base = bases.get(place)
        found = Held(rotated.document, time.monotonic())

        # When a version was made only the server knows, and a ring goes by that. A
        # command ends before it would matter.
        if self.live.needs(place) and MODE.get() is None:
            try:
                found = self.client.poll(place, self.live.needs(place), base)
            except VaultError as error:
                _log.warning(
                    "The key ring of %r learns of the rotation at the next refresh: %s",
                    place.path,
                    error,
                )
                return
        elif base is not None:
            found = dataclasses.replace(found, history=base.history)

        learned = self._learn({place: found}, "local", bases)

        for problem in learned.rejected.values():
            _log.warning("%s", problem)

        self.teller.tell()

    # --- contexts --------------------------------------------------------------------

    def _place(self, entry: Entry) -> Location:
        return self.client.catalog.location_of(entry)

    def _pin(self) -> Pin | None:
        """What the current app context has seen; ``None`` outside of one of our app."""
        try:
            store = _present_g()
        except RuntimeError:
            return None

        try:
            pin: Pin = store._vault_snapshot
        except AttributeError:
            if current_app != self.app:
                return None

            pin = store._vault_snapshot = self.client.new_pin()

        return pin if pin.owner is self.client else None


def _is_same(one: Held | None, other: Held | None) -> bool:
    if one is None or other is None:
        return one is other

    return one.document is other.document and one.history is other.history


def _in_parallel(
    work: cabc.Callable[[Location], Held | VaultError], places: list[Location]
) -> list[tuple[Location, Held | VaultError]]:
    if len(places) <= 1:
        return [(place, work(place)) for place in places]

    with concurrent.futures.ThreadPoolExecutor(
        min(PARALLEL, len(places)), thread_name_prefix="flask-vault-load"
    ) as pool:
        return list(zip(places, pool.map(work, places), strict=True))
