"""Tells an app's receivers and hooks what has changed, with no lock held."""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import itertools
import logging
import threading
import typing as t

from flask import current_app
from flask import Flask
from flask import has_app_context

from .announcer import Announcer
from .announcer import Job
from .errors import VaultError
from .live import Learned
from .observing import Observers
from .signals import call
from .signals import keyring_advanced
from .signals import refresh_failed
from .signals import refresh_recovered
from .signals import secret_rotated
from .signals import send

_log = logging.getLogger("flask_vault")

#: Called with the config key and the version.
Hook = cabc.Callable[[str, "int | None"], object]


class _Collected(threading.local):
    """What was learned in this thread, while somebody collects it."""

    keys: list[str] | None = None


class Teller:
    """Sends the signals of one app, and calls its hooks.

    :param in_thread: whether the caller is the refresh thread, which is not to be held
        up by a receiver.
    """

    def __init__(
        self, app: Flask, observers: Observers, in_thread: cabc.Callable[[], bool]
    ) -> None:
        self._app = app
        self._observers = observers
        self._in_thread = in_thread
        self._announcer = Announcer()
        self._hooks: list[tuple[frozenset[str], Hook]] = []
        #: Lists to which others add.
        self.hook_lists = [self._hooks]
        #: What is to be told when the calling thread has let go of its locks.
        self._jobs: collections.deque[Job] = collections.deque()
        self._collected = _Collected()

    def on_change(self, keys: cabc.Iterable[str], hook: Hook) -> None:
        """Have a function called when the config has another value for a key."""
        self._hooks.append((frozenset(keys), hook))

    @contextlib.contextmanager
    def collecting(self) -> cabc.Iterator[list[str]]:
        """Gather the config keys that this thread learns to have changed."""
        keys = self._collected.keys = []

        try:
            yield keys
        finally:
            self._collected.keys = None

    def learned(self, learned: Learned, origin: str) -> None:
        """Tell of what a poll or the passing of time has brought, a little later."""
        if self._collected.keys is not None:
            self._collected.keys += [change.key for change in learned.changes]

        if learned:
            self._observers.changed()
            self._later(lambda: self._send(learned, origin))

    def failed(self, errors: cabc.Mapping[str, VaultError]) -> None:
        """Tell of paths that begin to fail, a little later."""
        kinds = [type(error).__name__ for error in errors.values()]

        # Many paths may have one reason, such as an answer that is no JSON.
        for reason in dict.fromkeys(str(error) for error in errors.values()):
            _log.warning(
                "The refresh fails, and the app goes on with what it has: %s", reason
            )

        self._later(
            lambda: self.signal(refresh_failed, paths=tuple(errors), error=kinds[0])
        )

    def recovered(self, seconds: float) -> None:
        """Tell that all is good again, a little later."""
        _log.warning("The refresh works again after %.0f s.", seconds)
        self._later(lambda: self.signal(refresh_recovered, seconds=seconds))

    def tell(self) -> None:
        """Tell what has been put off. Called by who holds no lock."""
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                return

            job()

    def signal(self, signal: t.Any, **arguments: t.Any) -> None:
        """Send a signal now, in an app context."""
        with self._app_context():
            for _ in range(send(signal, self._app, **arguments)):
                self._observers.receiver_failed(signal.name)

    # --- parts -----------------------------------------------------------------------

    def _later(self, job: Job) -> None:
        if self._in_thread():
            self._announcer.announce(job)
        else:
            self._jobs.append(job)

    def _send(self, learned: Learned, origin: str) -> None:
        with self._app_context():
            for change in learned.changes:
                self.signal(
                    secret_rotated,
                    key=change.key,
                    path=change.path,
                    field=change.field,
                    version=change.version,
                    previous_version=change.previous_version,
                    origin=origin,
                )

            for advance in learned.advances:
                self.signal(
                    keyring_advanced,
                    key=advance.key,
                    version=advance.version,
                    accepted=advance.accepted,
                )

            for key, version in learned.written:
                for keys, hook in itertools.chain(*self.hook_lists):
                    if key in keys and not call(
                        f"on_rotate({key!r})", hook, key, version
                    ):
                        self._observers.receiver_failed("on_rotate")

    def _app_context(self) -> contextlib.AbstractContextManager[object]:
        if has_app_context() and current_app == self._app:
            return contextlib.nullcontext()

        return self._app.app_context()
