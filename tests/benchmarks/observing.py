"""What it costs to be observed, and to have secrets masked in logs."""

from __future__ import annotations

import logging
import time

from flask import Flask
from prometheus_client import CollectorRegistry

from flask_vault import FlaskVault
from flask_vault.integrations import prometheus
from flask_vault.observing import Observers
from flask_vault.observing import observers_of

from .pairs import Side
from .pairs import take_turns
from .servers import BenchServer
from .table import duration
from .table import Row
from .table import Section

ROUNDS = 51
RECORDS = 500
REQUESTS = 2_000
MANY = 200


def measure(server: BenchServer) -> Section:
    """Records with and without the filter, and the seam that a request passes."""
    rows = []

    for number in (len(server.names), MANY):
        # The filter does not keep the app.
        logger, app = _masked(server, number)
        sides = {"with": _records(logger), "without": _records(_logger())}
        runs = take_turns(sides, ROUNDS)
        added = runs.difference("with", "without") / RECORDS
        rows.append(
            Row(
                f"a log record, {number} secrets masked",
                duration(runs.median("with") / RECORDS),
                duration(runs.median("without") / RECORDS),
                f"+ {duration(added)}",
            )
        )

    app = server.app(len(server.names))
    prometheus.init_app(app, CollectorRegistry())
    seams = {
        "nobody": _requests(Observers()),
        "prometheus": _requests(observers_of(app.extensions)),
    }
    seam = take_turns(seams, ROUNDS)
    nobody, counted = (seam.median(name) / REQUESTS for name in seams)
    rows += [
        Row(
            "a request to Vault that nobody observes",
            duration(nobody),
            budget="<= 1 us",
            held=nobody <= 1e-6,
        ),
        Row("a request to Vault that Prometheus counts", duration(counted)),
    ]
    return Section(
        "What observing adds, vs a logger without the filter\n(median of"
        f" {ROUNDS} pairs of {RECORDS} records, or of {REQUESTS} requests without the"
        " requests)",
        rows,
    )


class _Nowhere(logging.Handler):
    """Formats, as every handler does, and writes nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


def _masked(server: BenchServer, secrets: int) -> tuple[logging.Logger, Flask]:
    """A logger, and the app whose secrets it masks."""
    vault, app, names = FlaskVault(), server.app(0), server.names
    app.config["VAULT_SECRETS"] = {
        f"KEY{n}": {"ref": names[n % len(names)], "template": f"number-{n}-{{value}}"}
        for n in range(secrets)
    }
    vault.init_app(app)
    logger = _logger()
    vault.redact(logger)
    return logger, app


def _logger() -> logging.Logger:
    logger = logging.Logger("benchmark")  # noqa: LOG001
    logger.addHandler(_Nowhere())
    return logger


def _records(logger: logging.Logger) -> Side:
    def run() -> float:
        began = time.perf_counter()

        for number in range(RECORDS):
            logger.warning("GET /orders/%d took %.3f s for %s", number, 0.042, "ada")

        return time.perf_counter() - began

    return run


def _requests(observers: Observers) -> Side:
    def run() -> float:
        began = time.perf_counter()

        for _ in range(REQUESTS):
            asked = time.monotonic()
            observers.requested("get", "/v1/secret/data/flask", asked, {})

        return time.perf_counter() - began

    return run
