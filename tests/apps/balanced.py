"""An app that tells which host answers, and that can be broken by a file.

``HOST_NAME`` is its name. As long as the file ``BROKEN`` exists, it is as if the
refresh thread were dead and could not be started again.
"""

from __future__ import annotations

import os
import pathlib

from flask import Flask

from flask_vault import FlaskVault
from flask_vault.extension import state_of

vault = FlaskVault()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = {"KEY": "flask#key"}
    vault.init_app(app)
    refresher = state_of(app).refresher
    broken = pathlib.Path(os.environ["BROKEN"])
    refresher.is_dead = broken.exists  # type: ignore[method-assign]

    @app.get("/")
    def name() -> str:
        return os.environ["HOST_NAME"]

    return app
