"""An app for gunicorn: reads secrets at start and in each request.

With ``PLAIN_HVAC`` it does so with hvac alone, one client for the process, as an app
that knows no better would.
"""

from __future__ import annotations

import os
import typing as t

import hvac
from flask import Flask

from flask_vault import FlaskVault


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = {f"SECRET_{n}": f"s{n}#value" for n in range(4)}
    read = _with_hvac(app) if "PLAIN_HVAC" in os.environ else _with_us(app)

    @app.get("/<int:number>")
    def answer(number: int) -> str:
        return read(f"s{number}")

    return app


def _with_us(app: Flask) -> t.Callable[[str], str]:
    vault = FlaskVault(app)

    def read(path: str) -> str:
        return str(vault.client.get_secret(path, "value", use_cache=False))

    return read


def _with_hvac(app: Flask) -> t.Callable[[str], str]:
    client = hvac.Client(
        app.config["VAULT_ADDR"], token=app.config["VAULT_TOKEN"], timeout=3
    )

    def read(path: str) -> str:
        found = client.secrets.kv.v2.read_secret_version(
            path, mount_point=app.config["VAULT_MOUNT"], raise_on_deleted_version=True
        )
        return str(found["data"]["data"]["value"])

    for number in range(4):
        read(f"s{number}")

    return read
