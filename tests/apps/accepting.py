"""An app whose workers tell when they have learned of which version of a key.

The time is monotonic, and so the same for all processes of a machine.
"""

from __future__ import annotations

import os
import time
import typing as t

from flask import Flask
from flask import jsonify

from flask_vault import FlaskVault
from flask_vault import secret_rotated

vault = FlaskVault()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    vault.init_app(app)
    accepted: dict[int, float] = {}

    @secret_rotated.connect_via(app, weak=False)
    def note(sender: Flask, *, version: int, **extra: object) -> None:
        accepted[version] = time.monotonic()

    @app.get("/")
    def tell() -> t.Any:
        return jsonify(pid=os.getpid(), accepted=accepted)

    return app
