"""An app for gunicorn whose metrics are those of all its workers."""

from __future__ import annotations

import os

from flask import Flask
from flask import Response
from prometheus_client import CollectorRegistry
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from flask_vault import FlaskVault
from flask_vault.integrations import prometheus

SECRETS = {
    "KEY": {"ref": "flask#key", "rotate": "token", "keyring": True},
    "STRIPE": "stripe#key",
}


def create_app() -> Flask:
    app = Flask("shop")
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = SECRETS
    vault = FlaskVault()
    prometheus.init_app(app)
    vault.init_app(app)

    @app.get("/0")
    def worker() -> str:
        return str(os.getpid())

    @app.get("/refresh")
    def refresh() -> str:
        vault.refresh()
        return str(os.getpid())

    @app.get("/metrics")
    def metrics() -> Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), mimetype=CONTENT_TYPE_LATEST)

    return app
