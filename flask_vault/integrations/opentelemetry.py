"""OpenTelemetry: spans of what an app does with Vault.

.. code-block:: python

    flask_vault.integrations.opentelemetry.init_app(app)
    vault.init_app(app)

It needs the API alone. Without that package nothing is traced, and nothing fails, so
that the call can stay where only some hosts are traced.
"""

from __future__ import annotations

import collections.abc as cabc
import time
import typing as t

from flask import Flask

from ..observing import Fact
from ..observing import Observer
from ..observing import observers_of
from ..observing import Span

try:
    from opentelemetry import context
    from opentelemetry import trace
except ImportError:
    _is_installed = False
else:
    _is_installed = True

if t.TYPE_CHECKING:
    from contextvars import Token

#: The name of the tracer, and the beginning of each span's and attribute's.
SCOPE: t.Final = "flask_vault"


def init_app(app: Flask, tracer_provider: trace.TracerProvider | None = None) -> None:
    """Trace what an app does with Vault.

    Called before ``vault.init_app``, it traces the start, too.

    :param tracer_provider: the global one when it is ``None``.
    """
    if not _is_installed:
        return

    tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
    observers_of(app.extensions).add(_Tracer(app.name, tracer))


class _Tracer(Observer):
    def __init__(self, name: str, tracer: trace.Tracer) -> None:
        self._name = name
        self._tracer = tracer

    def begin(self, name: str, facts: cabc.Mapping[str, Fact]) -> Span:
        span = self._tracer.start_span(
            f"{SCOPE}.{name}", attributes=self._attributes(facts)
        )
        return _CurrentSpan(span)

    def step(self, name: str, seconds: float, facts: cabc.Mapping[str, Fact]) -> None:
        end = time.time_ns()
        self._tracer.start_span(
            f"{SCOPE}.rotation.{name.replace(' ', '_')}",
            attributes=self._attributes(facts),
            start_time=end - int(seconds * 1e9),
        ).end(end)

    def _attributes(self, facts: cabc.Mapping[str, Fact]) -> dict[str, Fact]:
        return _prefixed({"app": self._name, **facts})


class _CurrentSpan:
    """A span within which the spans of other libraries are."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Token[t.Any] = context.attach(trace.set_span_in_context(span))

    def note(self, facts: cabc.Mapping[str, Fact]) -> None:
        self._span.set_attributes(_prefixed(facts))

    def end(self, error: str | None) -> None:
        if error is not None:
            # Not the exception itself, whose text has paths and addresses.
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, error))
            self._span.set_attribute("error.type", error)

        context.detach(self._token)
        self._span.end()


def _prefixed(facts: cabc.Mapping[str, Fact]) -> dict[str, Fact]:
    return {f"{SCOPE}.{name}": fact for name, fact in facts.items()}
