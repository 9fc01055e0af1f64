"""Calls receivers in order without holding up who has something to tell."""

from __future__ import annotations

import collections
import collections.abc as cabc
import logging
import threading

from .errors import place_of
from .vault.process import PerProcess

_log = logging.getLogger("flask_vault")

Job = cabc.Callable[[], None]


class _Queue:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs: collections.deque[Job] = collections.deque()
        self.working = False


class Announcer:
    """Runs jobs one after the other in a thread, which ends when there are no more.

    A receiver that takes half a minute must not delay the next poll.
    """

    def __init__(self) -> None:
        self._queue: PerProcess[_Queue] = PerProcess(_Queue)

    def announce(self, job: Job) -> None:
        """Run a job after those that were given before it."""
        queue = self._queue.get()

        with queue.lock:
            queue.jobs.append(job)

            if queue.working:
                return

            queue.working = True

        threading.Thread(
            target=_work, args=(queue,), name="flask-vault-signals", daemon=True
        ).start()


def _work(queue: _Queue) -> None:
    while True:
        with queue.lock:
            if not queue.jobs:
                queue.working = False
                return

            job = queue.jobs.popleft()

        try:
            job()
        except Exception as error:
            _log.error(
                "A signal could not be sent: %s at %s.",
                type(error).__name__,
                place_of(error),
            )

        # Nothing of the app is kept while the next one is waited for.
        del job
