"""What happens inside, told to whoever measures it: metrics, traces.

This is the one place where they are let in. An app that nobody observes pays for a
look at an empty tuple. What is told holds no value, and no address or path either.
"""

from __future__ import annotations

import collections.abc as cabc
import logging
import time
import types
import typing as t

from .errors import place_of
from .errors import SecretNotFoundError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultPermissionError
from .errors import VaultUnavailableError

Fact = str | int | float
T = t.TypeVar("T")

#: What a request may be for. A renewal also proves that the active node answers.
OPERATIONS: t.Final = ("login", "read", "metadata", "write", "renew", "other")

#: How a request may end. ``error`` is all that is no other, such as a lost
#: check-and-set.
OUTCOMES: t.Final = ("ok", "missing", "denied", "unavailable", "error")

#: Where the observers of an app are that is not loaded yet.
_WAITING: t.Final = "vault-observers"

_log = logging.getLogger("flask_vault")


class Span(t.Protocol):
    """An observer's account of something that takes its time."""

    def note(self, facts: cabc.Mapping[str, Fact]) -> None:
        """Add what is known by now."""

    def end(self, error: str | None) -> None:
        """It is over.

        :param error: the name of the exception's type when it failed.
        """


class Observer:
    """What can be observed. One that is made of it takes what it needs.

    It is called by any thread, also several at once. What it raises is logged, and
    changes nothing.
    """

    def requested(self, operation: str, outcome: str, seconds: float) -> None:
        """An address was asked once.

        :param operation: one of :data:`OPERATIONS`.
        :param outcome: one of :data:`OUTCOMES`.
        """

    def refreshed(self, errors: cabc.Mapping[str, VaultError]) -> None:
        """Every path was asked for once.

        :param errors: what went wrong, by path.
        """

    def changed(self) -> None:
        """The app has another value, or a key ring has moved."""

    def receiver_failed(self, receiver: str) -> None:
        """A receiver raised.

        :param receiver: the signal's name, or ``on_rotate``.
        """

    def begin(self, name: str, facts: cabc.Mapping[str, Fact]) -> Span | None:
        """Something begins: ``load``, ``login``, ``refresh`` or ``rotate``.

        :return: is told of its end, by the same thread.
        """

    def step(self, name: str, seconds: float, facts: cabc.Mapping[str, Fact]) -> None:
        """A step of a rotation is over."""


class Trace:
    """What is told to the spans of all observers. A context manager."""

    def __init__(
        self, observers: Observers, name: str, facts: cabc.Mapping[str, Fact]
    ) -> None:
        self._observers = observers
        self._begun = name, facts
        self._spans: list[Span] = []
        self._error: str | None = None

    def __enter__(self) -> Trace:
        name, facts = self._begun

        for observer in self._observers:
            span = guarded(lambda o=observer: o.begin(name, facts))  # type: ignore[misc]

            if span is not None:
                self._spans.append(span)

        return self

    def note(self, **facts: Fact) -> None:
        """Add what is known by now."""
        for span in self._spans:
            guarded(lambda s=span: s.note(facts))  # type: ignore[misc]

    def failed(self, error: BaseException) -> None:
        """It fails, and nothing is raised for it."""
        self._error = type(error).__name__

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)

        # The last one that began is the first to end.
        while self._spans:
            span = self._spans.pop()
            guarded(lambda s=span: s.end(self._error))  # type: ignore[misc]


class Observers:
    """The observers of one app."""

    def __init__(self) -> None:
        self._all: tuple[Observer, ...] = ()

    def __iter__(self) -> cabc.Iterator[Observer]:
        return iter(self._all)

    def add(self, observer: Observer) -> None:
        """Let somebody observe."""
        self._all = (*self._all, observer)

    def requested(self, method: str, url: str, began: float, answer: object) -> None:
        """Tell of a request to one address.

        :param url: the part after the address.
        :param began: monotonic time.
        :param answer: a :exc:`VaultError` when it failed.
        """
        if self._all:
            seconds = time.monotonic() - began
            operation, outcome = operation_of(method, url), outcome_of(answer)
            self._tell(lambda o: o.requested(operation, outcome, seconds))

    def refreshed(self, errors: cabc.Mapping[str, VaultError]) -> None:
        """Tell of a refresh that is over."""
        self._tell(lambda observer: observer.refreshed(errors))

    def changed(self) -> None:
        """Tell that the app has something else now."""
        self._tell(lambda observer: observer.changed())

    def receiver_failed(self, receiver: str) -> None:
        """Tell of a receiver that raised."""
        self._tell(lambda observer: observer.receiver_failed(receiver))

    def step(self, name: str, seconds: float, **facts: Fact) -> None:
        """Tell of a step of a rotation that is over."""
        self._tell(lambda observer: observer.step(name, seconds, facts))

    def span(self, name: str, **facts: Fact) -> Trace:
        """Tell of what the ``with`` block does."""
        return Trace(self, name, facts)

    def _tell(self, tell: cabc.Callable[[Observer], object]) -> None:
        for observer in self._all:
            guarded(lambda o=observer: tell(o))  # type: ignore[misc]


class StepTimer:
    """Makes observations of what the runner of rotations reports.

    The runner tells that a step is over, and each second that it waits.
    """

    def __init__(self, observers: Observers) -> None:
        self._observers = observers
        self._made = time.monotonic()
        #: When the last step of a task was over, and when its wait has ended so far.
        self._steps: dict[cabc.Hashable, float] = {}
        self._waits: dict[cabc.Hashable, float] = {}

    def report(
        self,
        task: cabc.Hashable,
        step: str,
        *,
        kind: str,
        operation: str | None,
        waits: bool,
    ) -> None:
        """Take one report.

        :param waits: whether it is of a wait, and not of a step that is over.
        """
        now = time.monotonic()

        if waits:
            self._waits[task] = now
            self._steps.setdefault(task, now)
            return

        facts = {"kind": kind, "operation": operation or ""}
        began = self._steps.get(task, self._made)
        waited = self._waits.pop(task, None)

        if waited is not None:
            self._observers.step("waiting", waited - began, **facts)
            began = waited

        self._observers.step(step, now - began, **facts)
        self._steps[task] = now


def observers_of(extensions: cabc.MutableMapping[str, t.Any]) -> Observers:
    """The observers of an app, also before it is loaded.

    :param extensions: ``app.extensions``.
    """
    state = extensions.get("vault")
    return t.cast(
        Observers,
        extensions.setdefault(_WAITING, Observers())
        if state is None
        else state.observers,
    )


def take_over(extensions: cabc.MutableMapping[str, t.Any]) -> Observers:
    """The same for the app's state, which keeps them. An app that fails to load has
    nothing of ours in it."""
    return t.cast(Observers, extensions.get(_WAITING) or Observers())


def operation_of(method: str, url: str) -> str:
    """What a request is for.

    :param url: the part after the address, such as ``/v1/secret/data/flask``.
    """
    _, _, path = url.partition("/v1/")

    if path.startswith("auth/"):
        if "/login" in path:
            return "login"

        return "renew" if path.startswith("auth/token/renew") else "other"

    if path.startswith("sys/"):
        return "other"

    if method.lower() not in {"get", "head", "list"}:
        return "write"

    # On KV v1 there is no such segment, unless somebody's document is called so.
    kinds = [part for part in path.split("/")[1:-1] if part in {"data", "metadata"}]
    listed = method.lower() == "list"
    return "metadata" if listed or kinds[:1] == ["metadata"] else "read"


def outcome_of(answer: object) -> str:
    """How a request ended."""
    if not isinstance(answer, VaultError):
        return "ok"

    if isinstance(answer, VaultUnavailableError):
        return "unavailable"

    if isinstance(answer, VaultPermissionError | VaultLoginError):
        return "denied"

    return "missing" if isinstance(answer, SecretNotFoundError) else "error"


def guarded(tell: cabc.Callable[[], T]) -> T | None:
    """Let an observer do something, and log what it raises."""
    try:
        return tell()
    except Exception as error:
        _log.error(
            "What observes Flask-Vault failed with %s at %s, and was passed over.",
            type(error).__name__,
            place_of(error),
        )
        return None
