"""When an app asks Vault again: in a thread, in a request, or when it is told to."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import logging
import math
import os
import random
import threading
import time
import typing as t
import weakref

from .errors import place_of
from .errors import VaultConnectionError
from .errors import VaultError
from .errors import VaultRateLimitedError
from .errors import VaultUnavailableError
from .vault.process import PerProcess

#: Least seconds between two refreshes that something unknown asks for.
ASK_EVERY: t.Final = 5.0

#: Most seconds that whoever asks for a refresh waits for it.
ASK_PATIENCE: t.Final = 2.0

#: Part of the interval by which a round comes earlier or later, so that the workers of
#: many hosts do not ask at once.
JITTER: t.Final = 0.2

#: Most seconds between two looks at whether there is something to do.
_LOOK_EVERY: t.Final = 0.2

#: Least and most seconds of a sleep.
_SLEEP: t.Final = 0.02, 3600.0

_log = logging.getLogger("flask_vault")


class Source(t.Protocol):
    """What is kept up to date."""

    def round(self) -> cabc.Mapping[str, VaultError]:
        """Ask for every path once; give what went wrong, by path."""

    def advance(self) -> None:
        """Do what is due by time alone."""

    def seconds_to_change(self) -> float:
        """Seconds until there is something due by time alone."""

    def keep_alive(self) -> float:
        """Look after the token; give the seconds until the next look."""

    def prove_fresh(self) -> None:
        """Have the active node answer."""


@dataclasses.dataclass(frozen=True)
class Freshness:
    """How old what a process knows may be. Times are monotonic seconds.

    :param last_success: when the last round in which every path was good began.
    :param last_fresh: when the active node answered last. A standby that is cut off
        goes on answering, with old data.
    :param failing_since: when the first of the rounds that fail began.
    :param errors: what is wrong now, by path.
    :param restarts: how often the thread was found dead.
    """

    last_success: float | None = None
    last_fresh: float | None = None
    failing_since: float | None = None
    errors: cabc.Mapping[str, VaultError] = dataclasses.field(default_factory=dict)
    restarts: int = 0


class _Local:
    """What must not cross a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: Monotonic time from which a request has to touch the refresher again.
        self.look_at = 0.0
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.rounds = threading.Condition()
        self.done = 0
        self.asked_at = -math.inf
        #: So many rounds are done when the one that was asked for is.
        self.asked_for = 0
        self.tried_at = -math.inf
        #: Until when requests wait for the round that catches up.
        self.catches_up_until = -math.inf
        self.wake = threading.Event()
        self.thread: threading.Thread | None = None
        self.stopped = False
        # The first round at a random phase.
        self.poll_at: float | None = None
        self.prove_at: float | None = None
        self.token_at = 0.0
        self.failures = 0


class Refresher:
    """Decides when its source is asked.

    :param mode: ``thread``, ``request`` or ``off``.
    :param interval: seconds between two rounds.
    :param window: ``VAULT_PROPAGATION_WINDOW`` in seconds.
    :param on_failure: called with the errors of the first round that fails, and with
        those of paths that fail as well later.
    :param on_recovery: called with the seconds that it took, when all is good again.
    :param on_round: called with the errors of each round, once they are noted.
    """

    def __init__(
        self,
        source: Source,
        *,
        mode: str,
        interval: float,
        window: float,
        on_failure: cabc.Callable[[cabc.Mapping[str, VaultError]], None],
        on_recovery: cabc.Callable[[float], None],
        on_round: cabc.Callable[[cabc.Mapping[str, VaultError]], None],
    ) -> None:
        self._source = source
        self.mode = mode
        self._interval = interval
        self._window = window
        #: Seconds in which there is a round, when the process is let run.
        self._longest_pause = interval * (1 + 2 * JITTER)
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._on_round = on_round
        self._local: PerProcess[_Local] = PerProcess(_Local)
        self._look_every = min(_LOOK_EVERY, interval / 10)
        #: What is of this process, once it was touched in one.
        self.here: _Local | None = None
        self._cannot_start = False
        self.freshness = Freshness()
        #: The paths of which was told since all was good.
        self._told: set[str] = set()

    # --- what others call ------------------------------------------------------------

    def touch(self) -> None:
        """Have what the mode says done.

        Called before a request, unless that was done a moment ago: see :attr:`here`.
        """
        here = self.here = self._local.get()

        if self.mode == "thread":
            if not _runs(here):
                self._start_if_possible()

            if self._is_behind(here) and _runs(here):
                self._catch_up(here)
        elif self.mode == "request":
            if self._is_behind(here):
                here.poll_at = 0.0

            self._step_if_free()

            if self._is_behind(here):
                self._catch_up(here)

        here.look_at = time.monotonic() + self._look_every

    def start(self) -> None:
        """Start the thread of this process, unless it runs."""
        here = self.here = self._local.get()

        with here.rounds:
            if here.stopped or (here.thread is not None and here.thread.is_alive()):
                return

            if here.thread is not None:
                _log.error("The refresh thread was found dead, and is started anew.")
                self._note(restarts=self.freshness.restarts + 1)

            thread = threading.Thread(
                target=_run,
                args=(weakref.ref(self, _waker(here)), here),
                name="flask-vault-refresh",
                daemon=True,
            )
            thread.start()
            # Not before: one that could not be started was never alive.
            here.thread = thread

    def stop(self) -> None:
        """End the thread of this process for good."""
        here = self._local.get()
        here.stopped = True
        here.wake.set()

    def wake(self) -> None:
        """Have the thread look anew at what is due."""
        self._local.get().wake.set()

    def now(self) -> cabc.Mapping[str, VaultError]:
        """Do a round in the calling thread.

        :return: what went wrong, by path.
        """
        here = self._local.get()

        with here.lock:
            return self._round(here)

    def ask(self) -> bool:
        """Refresh because something unknown was met, such as a key id.

        One round for all that ask meanwhile, and none within 5 s of the one before, so
        that nobody can make this process ask by sending what it does not know.

        :return: whether a round was done since the call.
        """
        here = self._local.get()

        with here.rounds:
            now = time.monotonic()
            leads = now - here.asked_at >= ASK_EVERY

            if leads:
                here.asked_at = now
                # One that runs already may have asked before there was anything new.
                here.asked_for = here.done + (2 if here.lock.locked() else 1)
            elif here.done >= here.asked_for:
                return False

            needed = here.asked_for

        running = _runs(here)

        if leads and running:
            here.poll_at = 0.0
            here.wake.set()
        elif leads:
            with contextlib.suppress(VaultError):
                self.now()

        # When it did not answer a moment ago, nobody is held up for it again.
        if running and self._is_away():
            return False

        with here.rounds:
            return here.rounds.wait_for(lambda: here.done >= needed, ASK_PATIENCE)

    def is_here(self) -> bool:
        """Whether this is the refresh thread."""
        here = self.here
        return here is not None and here.thread is threading.current_thread()

    def is_dead(self) -> bool:
        """Whether there should be a thread, and there is none."""
        here = self.here
        return self._cannot_start or (
            self.mode == "thread"
            and here is not None
            and here.pid == os.getpid()
            and here.thread is not None
            and not here.thread.is_alive()
        )

    def loaded(self, fresh_at: float | None) -> None:
        """Note that everything was read at the start of the app.

        :param fresh_at: when the active node answered. Without a login it is not known
            yet, and there is a window's time to find out.
        """
        now = time.monotonic()
        self._note(last_success=now, last_fresh=fresh_at or now)

    def fresh(self, at: float | None) -> None:
        """Note when the active node answered last."""
        if at is not None and at > (self.freshness.last_fresh or -math.inf):
            self._note(last_fresh=at)

    # --- steps -----------------------------------------------------------------------

    def step(self, here: _Local) -> float:
        """Do what is due.

        :return: seconds until there is something to do again.
        """
        now = time.monotonic()

        if here.poll_at is None:
            here.poll_at = now + random.uniform(0, self._interval)  # noqa: S311

        if here.prove_at is None:
            here.prove_at = now + self._prove_every

        if here.token_at <= now:
            here.token_at = self._look_after_token()

        if here.poll_at <= now:
            with here.lock:
                self._round(here)

        # Where the round met silence, another wait for it proves nothing.
        if here.prove_at <= time.monotonic() and not self._is_away():
            here.prove_at = time.monotonic() + self._prove_every

            with contextlib.suppress(VaultError, OSError):
                self._source.prove_fresh()

        self._source.advance()
        now = time.monotonic()
        due = min(here.poll_at, here.token_at)

        if not self._is_away():
            due = min(due, here.prove_at)

        wait = min(due - now, self._source.seconds_to_change())
        return min(max(wait, _SLEEP[0]), _SLEEP[1])

    def _is_away(self) -> bool:
        errors = self.freshness.errors.values()
        return any(isinstance(error, VaultConnectionError) for error in errors)

    @property
    def _prove_every(self) -> float:
        """So often that one answer may be lost before the window is over."""
        return max(self._interval, self._window / 2)

    def _look_after_token(self) -> float:
        try:
            wait = self._source.keep_alive()
        except (VaultError, OSError):
            # The round that follows tells of it.
            wait = self._interval

        return time.monotonic() + max(wait, 0.2)

    def _start_if_possible(self) -> None:
        try:
            self.start()
        except RuntimeError as error:
            # No request fails for it; the health tells.
            if not self._cannot_start:
                _log.error("The refresh thread cannot be started: %s.", error)

            self._cannot_start = True
            return

        self._cannot_start = False

    def _is_behind(self, here: _Local) -> bool:
        """Whether others may sign with keys that nobody here has asked for.

        A server that was loaded before it forked, a worker that had nothing to do, and
        one that was frozen have the keys of their last round. When Vault does not
        answer, it was asked.
        """
        now = time.monotonic()

        if now - here.tried_at <= self._longest_pause:
            return False

        # Nor is a request held up for a server that is asked now, or did not answer.
        if here.done and (here.lock.locked() or self._is_away()):
            return False

        loaded = self.freshness.last_success
        return loaded is not None and now - loaded > self._longest_pause

    def _catch_up(self, here: _Local) -> None:
        """Wait for a round, a little while and not again, before a request is served
        with keys that are out of date."""
        now = time.monotonic()

        with here.rounds:
            if now - here.catches_up_until > self._longest_pause:
                here.catches_up_until = now + ASK_PATIENCE
                here.poll_at = 0.0
                here.wake.set()

            here.rounds.wait_for(
                lambda: not self._is_behind(here), max(0.0, here.catches_up_until - now)
            )

    def _step_if_free(self) -> None:
        here = self._local.get()

        if here.poll_at is None or here.prove_at is None or here.wake.is_set():
            here.wake.clear()
        elif time.monotonic() < here.token_at and not self._is_due(here):
            return

        # One request does it; the others go on with what there is.
        if not here.turn.acquire(blocking=False):
            return

        try:
            self.step(here)
        except Exception as error:
            _tell_bug(error)
        finally:
            here.turn.release()

    def _is_due(self, here: _Local) -> bool:
        now = time.monotonic()
        due = t.cast(float, here.poll_at)

        if not self._is_away():
            due = min(due, t.cast(float, here.prove_at))

        return due <= now or self._source.seconds_to_change() <= 0

    def _round(self, here: _Local) -> cabc.Mapping[str, VaultError]:
        began = time.monotonic()

        try:
            errors = self._source.round()
        except Exception as error:
            # A bug of ours or of a check: told, seen in the health, and tried again.
            _tell_bug(error)
            kind = type(error).__name__
            errors = {"*": VaultError(f"The refresh failed with {kind}, see the log.")}
        finally:
            spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
            here.poll_at = time.monotonic() + self._interval * spread

            with here.rounds:
                here.done += 1
                here.tried_at = time.monotonic()

                if here.done < here.asked_for:
                    here.poll_at = 0.0

                here.rounds.notify_all()

        if not errors:
            here.failures = 0
            self._succeeded(began)
            self._on_round(errors)
            return errors

        here.failures += 1
        here.poll_at = time.monotonic() + self._pause(here.failures, errors)
        self._failed(began, errors)
        self._on_round(errors)
        return errors

    def _pause(self, failures: int, errors: cabc.Mapping[str, VaultError]) -> float:
        """Seconds to the next try: soon, and then less and less often."""
        longest = min(self._interval, 2.0 ** min(failures, 10))
        asked = [
            error.retry_after or 0.0
            for error in errors.values()
            if isinstance(error, VaultRateLimitedError)
        ]
        spread = random.uniform(0.5, 1.0)  # noqa: S311
        # A proxy that asks for a day would leave the app without its keys.
        return max(longest * spread, min(max(asked, default=0.0), self._interval))

    def _succeeded(self, began: float) -> None:
        since = self.freshness.failing_since
        self._told.clear()
        self._note(last_success=began, failing_since=None, errors={})

        if since is not None:
            self._on_recovery(time.monotonic() - since)

    def _failed(self, began: float, errors: cabc.Mapping[str, VaultError]) -> None:
        first = self.freshness.failing_since is None
        new = {
            path: error
            for path, error in errors.items()
            # What is wrong with the server is the same for each path.
            if first
            or not (path in self._told or isinstance(error, VaultUnavailableError))
        }
        self._told.update(new)
        self._note(
            failing_since=began if first else self.freshness.failing_since,
            errors=dict(errors),
        )

        # What fails as well now is not hidden behind what has failed for long.
        if new:
            self._on_failure(new)

    def _note(self, **facts: t.Any) -> None:
        self.freshness = dataclasses.replace(self.freshness, **facts)


def _waker(here: _Local) -> cabc.Callable[[object], None]:
    """Wakes a thread whose refresher is gone, so that it ends."""
    return lambda _: here.wake.set()


def _runs(here: _Local) -> bool:
    return here.thread is not None and here.thread.is_alive()


def _run(ref: weakref.ref[Refresher], here: _Local) -> None:
    """The thread. It must not be what keeps an app alive."""
    while not here.stopped:
        refresher = ref()

        if refresher is None:
            return

        try:
            wait = refresher.step(here)
        except Exception as error:
            # A bug of ours must not end what keeps the keys up to date.
            _tell_bug(error)
            wait = 1.0

        del refresher
        here.wake.wait(wait)
        here.wake.clear()


def _tell_bug(error: Exception) -> None:
    """Say where, and not what, which may hold a value."""
    _log.error(
        "A refresh failed with %s at %s, and is tried again.",
        type(error).__name__,
        place_of(error),
    )
