"""What requests to an app cost when it has the extension."""

from __future__ import annotations

import statistics
import time
import typing as t

from flask import Flask
from werkzeug.test import create_environ
from werkzeug.test import run_wsgi_app

from flask_vault import FlaskVault

from .pairs import Side
from .pairs import take_turns
from .servers import BenchServer
from .table import duration
from .table import Row
from .table import Section

ROUNDS = 101
BATCH = 200
CALLS = 5_000
P99 = 0.005


def measure(server: BenchServer) -> Section:
    """A trivial view, and the health for a load balancer, called as WSGI apps."""
    with_it = _with_extension(server)
    without = Flask("benchmark")
    # Both open a session in each request, as an app with a key does.
    without.secret_key = with_it.secret_key = "not-a-secret"

    for app in (with_it, without):
        app.add_url_rule("/", view_func=lambda: "Hello")

    runs = take_turns({"with": _batch(with_it), "without": _batch(without)}, ROUNDS)
    rate = runs.ratio("without", "with")
    rows = [
        Row(
            "a trivial view, requests per second",
            f"{BATCH / runs.median('with'):.0f}",
            f"{BATCH / runs.median('without'):.0f}",
            f"{rate:.3f} x",
            ">= 0.980 x",
            rate >= 0.98,
        )
    ]
    peer = _p99(without, "/")

    for details in ("never", "always"):
        taken = _p99(_with_extension(server, VAULT_HEALTH_DETAILS=details))
        rows.append(
            Row(
                f"/vault/health, p99, details '{details}', vs a trivial view",
                duration(taken),
                duration(peer),
                f"{taken / peer:.3f} x",
                f"<= {duration(P99)}",
                taken <= P99,
            )
        )

    return Section(
        f"Requests to an app with {len(server.names)} secrets vs one without the"
        " extension\n(WSGI calls in this process, no sockets; median of"
        f" {ROUNDS} pairs of {BATCH} requests; p99 of {CALLS})",
        rows,
    )


def _with_extension(server: BenchServer, **config: object) -> Flask:
    app = server.app(len(server.names), **config)
    FlaskVault().init_app(app)
    return app


def _batch(app: Flask) -> Side:
    environ = create_environ("/")

    def run() -> float:
        began = time.perf_counter()

        for _ in range(BATCH):
            _call(app, environ)

        return time.perf_counter() - began

    return run


def _p99(app: Flask, path: str = "/vault/health") -> float:
    environ = create_environ(path)
    taken = []

    for _ in range(CALLS):
        began = time.perf_counter()
        _call(app, environ)
        taken.append(time.perf_counter() - began)

    return statistics.quantiles(taken, n=100)[-1]


def _call(app: Flask, environ: dict[str, t.Any]) -> None:
    _, status, _ = run_wsgi_app(app, environ, buffered=True)

    if not status.startswith("200"):
        raise AssertionError(f"{environ['PATH_INFO']} answered {status}.")
