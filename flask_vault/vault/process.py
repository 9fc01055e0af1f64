"""State that belongs to one process id, and work that is done once for many threads."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import copy
import os
import threading
import typing as t

T = t.TypeVar("T")


class PerProcess(t.Generic[T]):
    """A value that is made anew in each process that uses it.

    Sockets, locks and threads must not cross a fork: under ``gunicorn --preload`` a
    shared HTTP session hands one request the answer of another.

    :param make: makes the value. Called once for each process id.
    """

    def __init__(self, make: cabc.Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """This process' value."""
        pid = os.getpid()
        value = self._values.get(pid)

        if value is None:
            # setdefault is atomic, so that all threads of a new child agree on one.
            value = self._values.setdefault(pid, self._make())

            for other in set(self._values) - {pid}:
                self._values.pop(other, None)

        return value


class SingleFlight:
    """One call at a time for each key; callers that come meanwhile share its end.

    They share a failure too: fifty threads that find a server gone send one request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[cabc.Hashable, concurrent.futures.Future[t.Any]] = {}

    def do(self, key: cabc.Hashable, work: cabc.Callable[[], T]) -> T:
        """Return what ``work`` returns, run by this thread or by one before it."""
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None

            if flight is None:
                flight = self._flights[key] = concurrent.futures.Future()

        if not leads:
            error = flight.exception()

            if error is not None:
                # One exception object raised in many threads mixes their tracebacks.
                raise copy.copy(error).with_traceback(None) from None

            return t.cast(T, flight.result())

        try:
            result = work()
        except BaseException as error:
            self._land(key)
            flight.set_exception(error)
            raise

        self._land(key)
        flight.set_result(result)
        return result

    def is_flying(self, key: cabc.Hashable) -> bool:
        """Whether somebody is at it now."""
        return key in self._flights

    def _land(self, key: cabc.Hashable) -> None:
        with self._lock:
            del self._flights[key]
