"""Prometheus: what an app has of Vault, as metrics of ``prometheus_client``.

.. code-block:: python

    flask_vault.integrations.prometheus.init_app(app)
    vault.init_app(app)

The metrics are in the registry that the app shows anyway. Of an event there is the
time, by Vault's clock, and not the age: an age would have to be set anew at each
scrape, which only the worker that is scraped could do.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import math
import os
import time
import typing as t
import weakref

from flask import Flask

from ..entries import Entry
from ..errors import VaultConfigError
from ..errors import VaultError
from ..keyring import KeyRing
from ..keyring import State
from ..observing import guarded
from ..observing import Observer
from ..observing import observers_of
from ..resolve import Outcome
from ..resolve import Source
from ..rotation.journal import RESERVED_FIELD
from ..signals import keyring_advanced
from ..signals import refresh_failed
from ..signals import refresh_recovered
from ..signals import secret_rotated
from ..signals import secrets_loaded
from ..state import AppState
from ..values import fields_of
from ..vault.documents import Document

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client import Counter
    from prometheus_client import Gauge
    from prometheus_client import Histogram
    from prometheus_client import REGISTRY
except ImportError:
    raise VaultConfigError(
        "flask_vault.integrations.prometheus needs prometheus_client: pip install"
        " 'flask-vault[prometheus]'."
    ) from None

SOURCES: t.Final[tuple[Source, ...]] = t.get_args(Source)
RECEIVERS: t.Final = (
    "on_rotate",
    *(
        signal.name
        for signal in (
            secrets_loaded,
            secret_rotated,
            keyring_advanced,
            refresh_failed,
            refresh_recovered,
        )
    ),
)
STATES: t.Final[tuple[State, ...]] = t.get_args(State)

#: Upper ends in seconds: from a server on this host to the default read timeout.
BUCKETS: t.Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

#: The variable by which ``prometheus_client`` keeps the metrics of several processes.
_SHARED: t.Final = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of a registry, for all apps that use it.

    Each has the label ``app``. One without any label would be 0 in a process from its
    making on, and the least of all workers would be that.

    Of several workers a gauge shows the one that is worst off: the oldest time, the
    most entries that are not from Vault.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def oldest(name: str, text: str, *labels: str) -> Gauge:
            return self._gauge(registry, "livemin", name, text, labels)

        def most(name: str, text: str, *labels: str) -> Gauge:
            return self._gauge(registry, "livemax", name, text, labels)

        self.entries = most("entries", "Entries of VAULT_SECRETS by source.", "source")
        self.version = oldest(
            "entry_version", "Version of the document that an entry is from.", "key"
        )
        self.created = oldest(
            "entry_created_timestamp_seconds", "When that version was made.", "key"
        )
        self.info = most(
            "entry_info",
            "1; where an entry is from (VAULT_METRICS_PATHS).",
            *("key", "path", "field"),
        )
        self.interval = most(
            "refresh_interval_seconds", "Seconds between two refreshes."
        )
        self.window = most("propagation_window_seconds", "VAULT_PROPAGATION_WINDOW.")
        self.success = oldest(
            "refresh_last_success_timestamp_seconds",
            "When the last refresh began in which every path was good.",
        )
        self.fresh = oldest(
            "refresh_last_fresh_timestamp_seconds",
            "When Vault's active node answered last.",
        )
        self.failing = most("refresh_failing", "1 while the refresh fails.")
        self.token = oldest(
            "token_expires_timestamp_seconds",
            "When the token ends, as far as is known; +Inf when it has no end.",
        )
        self.ring = most("keyring_keys", "Keys of a key ring by state.", "key", "state")
        self.next_change = oldest(
            "keyring_next_change_timestamp_seconds",
            "When time alone changes the key ring; +Inf when it does not.",
            "key",
        )
        self.rotation = most("rotation_open", "1 while a rotation is open.", "key")
        self.refreshes = Counter(
            "flask_vault_refreshes",
            "Refreshes, by whether every path was good (ok, failed).",
            ("app", "outcome"),
            registry=registry,
        )
        self.refresh_errors = Counter(
            "flask_vault_refresh_errors",
            "Paths that were no good in a refresh, by the exception's type.",
            ("app", "error"),
            registry=registry,
        )
        self.receiver_errors = Counter(
            "flask_vault_receiver_errors",
            "Receivers of signals and of on_rotate that have raised.",
            ("app", "receiver"),
            registry=registry,
        )
        self.requests = Histogram(
            "flask_vault_request_duration_seconds",
            "Requests to one address of Vault.",
            ("app", "operation", "outcome"),
            registry=registry,
            buckets=BUCKETS,
        )

    @staticmethod
    def _gauge(
        registry: CollectorRegistry,
        mode: t.Literal["livemin", "livemax"],
        name: str,
        text: str,
        labels: cabc.Iterable[str],
    ) -> Gauge:
        return Gauge(
            f"flask_vault_{name}",
            text,
            ("app", *labels),
            registry=registry,
            multiprocess_mode=mode,
        )


# A name can be registered once. Apps that share a registry share its metrics.
_metrics: weakref.WeakKeyDictionary[CollectorRegistry, Metrics] = (
    weakref.WeakKeyDictionary()
)


def init_app(app: Flask, registry: CollectorRegistry | None = None) -> None:
    """Count what an app does with Vault.

    Called before ``vault.init_app``, it counts what the start costs, too.

    :param registry: where the metrics are; the default one of ``prometheus_client``
        when it is ``None``. Metrics of several processes are in files instead, as its
        documentation on multiprocess mode says.
    """
    where = REGISTRY if registry is None else registry
    metrics = _metrics.get(where)

    if metrics is None:
        metrics = _metrics[where] = Metrics(where)

    publisher = _Publisher(app, metrics)
    observers_of(app.extensions).add(publisher)
    app.before_request(publisher.touch)
    guarded(publisher.changed)


class _Publisher(Observer):
    """Sets the metrics of one app.

    Where several processes share them, those of a process that serves nobody, such as
    the parent under ``gunicorn --preload``, must not be among them: nothing there goes
    on, and its times would be the oldest for ever.
    """

    def __init__(self, app: Flask, metrics: Metrics) -> None:
        self._app = weakref.ref(app)
        self._name = app.name
        self._metrics = metrics
        self._published_by: int | None = None

    # --- events ----------------------------------------------------------------------

    def requested(self, operation: str, outcome: str, seconds: float) -> None:
        self._metrics.requests.labels(self._name, operation, outcome).observe(seconds)

    def refreshed(self, errors: cabc.Mapping[str, VaultError]) -> None:
        outcome = "failed" if errors else "ok"
        self._metrics.refreshes.labels(self._name, outcome).inc()

        for error in errors.values():
            kind = type(error).__name__
            self._metrics.refresh_errors.labels(self._name, kind).inc()

        self._publish()

    def receiver_failed(self, receiver: str) -> None:
        self._metrics.receiver_errors.labels(self._name, receiver).inc()

    def changed(self) -> None:
        if _SHARED not in os.environ or self._published_by == os.getpid():
            self._publish()

    def touch(self) -> None:
        """See to it that this process is among those that are shown."""
        if self._published_by != os.getpid():
            guarded(self._publish)

    # --- figures ---------------------------------------------------------------------

    def _publish(self) -> None:
        app = self._app()
        state: AppState | None = None if app is None else app.extensions.get("vault")

        if state is None:
            return

        self._published_by = os.getpid()
        counted = collections.Counter(o.source for o in state.outcomes.values())

        for source in SOURCES:
            self._metrics.entries.labels(self._name, source).set(counted[source])

        for key, outcome in state.outcomes.items():
            self._publish_entry(state, key, outcome)

        # What is not there cannot be seen to rise.
        for receiver in RECEIVERS:
            self._metrics.receiver_errors.labels(self._name, receiver)

        if state.settings.enabled:
            self._publish_refresh(state)

    def _publish_entry(self, state: AppState, key: str, outcome: Outcome) -> None:
        metrics, labels = self._metrics, (self._name, key)
        entry = outcome.entry

        if outcome.version is not None:
            metrics.version.labels(*labels).set(outcome.version)

        if outcome.created is not None:
            metrics.created.labels(*labels).set(outcome.created.timestamp())

        if not state.settings.enabled:
            return

        place = state.client.catalog.location_of(entry)
        held = state.live.applied.get(place)

        if held is not None:
            opened = is_open(entry, held.document)
            metrics.rotation.labels(*labels).set(opened)

        if state.settings.metrics_paths:
            field = entry.reference.field or ""
            metrics.info.labels(*labels, place.path, field).set(1)

        ring = state.live.rings.get(key)

        if ring is not None:
            self._publish_ring(key, ring)

    def _publish_ring(self, key: str, ring: KeyRing) -> None:
        counted = collections.Counter(k.state for k in ring.accepted)

        for state in STATES:
            self._metrics.ring.labels(self._name, key, state).set(counted[state])

        change = ring.next_change
        self._metrics.next_change.labels(self._name, key).set(
            math.inf if change is None else change.timestamp()
        )

    def _publish_refresh(self, state: AppState) -> None:
        metrics, known = self._metrics, state.refresher.freshness
        transport = state.client.transport
        token = transport.token
        now, here = transport.now().timestamp(), time.monotonic()

        if state.refresher.mode != "off":
            metrics.interval.labels(self._name).set(state.settings.refresh_interval)

        for result in ("ok", "failed"):
            metrics.refreshes.labels(self._name, result)

        metrics.window.labels(self._name).set(state.settings.propagation_window)
        metrics.failing.labels(self._name).set(known.failing_since is not None)

        for gauge, at in (
            (metrics.success, known.last_success),
            (metrics.fresh, known.last_fresh),
            (metrics.token, None if token is None else token.expires_at),
        ):
            if at is not None:
                gauge.labels(self._name).set(now - here + at)


def is_open(entry: Entry, document: Document) -> bool:
    """Whether a rotation of what an entry is made from has begun and has not ended."""
    record = document.data.get(RESERVED_FIELD)

    if not isinstance(record, cabc.Mapping):
        return False

    fields = fields_of(entry, document.data)
    return any(isinstance(record.get(field), cabc.Mapping) for field in fields)
