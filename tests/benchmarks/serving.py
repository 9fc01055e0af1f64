"""What requests to an app cost when it has the extension."""

from __future__ import annotations

import time
import typing as t

from flask import Flask
from werkzeug.test import create_environ
from werkzeug.test import run_wsgi_app

from flask_vault import FlaskVault

from .pairs import Side
from .pairs import take_turns
from .servers import BenchServer
from .table import Row
from .table import Section

ROUNDS = 101
BATCH = 200


def measure(server: BenchServer) -> Section:
    """A trivial view, called as a WSGI app. For the health see :mod:`.health`."""
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

    return Section(
        f"Requests to an app with {len(server.names)} secrets vs one without the"
        " extension\n(WSGI calls in this process, no sockets; median of"
        f" {ROUNDS} pairs of {BATCH} requests)",
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


def _call(app: Flask, environ: dict[str, t.Any]) -> None:
    _, status, _ = run_wsgi_app(app, environ, buffered=True)

    if not status.startswith("200"):
        raise AssertionError(f"{environ['PATH_INFO']} answered {status}.")
