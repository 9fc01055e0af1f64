"""What a load balancer and a person wait for, while Vault does not answer."""

from __future__ import annotations

import statistics
import time
import typing as t

from flask import Flask
from werkzeug.test import create_environ
from werkzeug.test import run_wsgi_app

from flask_vault import FlaskVault

from .servers import BenchServer
from .table import duration
from .table import Row
from .table import Section

SECRETS = 200
CALLS = 2_000
P99 = 0.005

_BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def measure() -> Section:
    """The health of an app whose server is stopped in the middle of its work: it takes
    connections and says nothing more. The refresh thread meanwhile waits for it."""
    without = Flask("benchmark")
    without.add_url_rule("/", view_func=lambda: "Hello")
    rows = []

    with BenchServer(SECRETS) as server:
        apps = {details: _app(server, details) for details in ("never", "always")}

        with server.frozen():
            peer = _p99(without, "/")

            for what, details, accept in (
                ("status", "never", "*/*"),
                ("details", "always", "*/*"),
                ("page", "always", _BROWSER),
            ):
                taken = _p99(apps[details], "/vault/health", accept)
                rows += [
                    _row(f"the {what}, vs a trivial view", taken[0], peer[0]),
                    _row(f"the {what}, CPU time alone", taken[1], peer[1]),
                ]

    return Section(
        f"/vault/health of an app with {SECRETS} secrets, Vault frozen"
        f"\n(WSGI calls in this process, no sockets; p99 of {CALLS})",
        rows,
    )


def _row(what: str, taken: float, peer: float) -> Row:
    return Row(
        what,
        duration(taken),
        duration(peer),
        f"{taken / peer:.3f} x",
        f"<= {duration(P99)}",
        taken <= P99,
    )


def _app(server: BenchServer, details: str) -> Flask:
    app = server.app(SECRETS, VAULT_HEALTH_DETAILS=details, VAULT_REFRESH_INTERVAL=1)
    FlaskVault().init_app(app)
    return app


def _p99(app: Flask, path: str, accept: str = "*/*") -> tuple[float, float]:
    """By the clock, which a machine that does other work makes longer, and of CPU."""
    environ = create_environ(path, headers={"Accept": accept})
    _call(app, environ)
    clock, cpu = [], []

    for _ in range(CALLS):
        began, worked = time.perf_counter(), time.thread_time()
        _call(app, environ)
        cpu.append(time.thread_time() - worked)
        clock.append(time.perf_counter() - began)

    return statistics.quantiles(clock, n=100)[-1], statistics.quantiles(cpu, n=100)[-1]


def _call(app: Flask, environ: dict[str, t.Any]) -> None:
    _, status, _ = run_wsgi_app(app, environ, buffered=True)

    if not status.startswith("200"):
        raise AssertionError(f"{environ['PATH_INFO']} answered {status}.")
