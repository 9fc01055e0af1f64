"""A shop that counts visits and charges cards."""

from __future__ import annotations

import typing as t

from flask import current_app
from flask import Flask
from flask import session

from flask_vault import FlaskVault

vault = FlaskVault()


def create_app(config: dict[str, t.Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        VAULT_SECRETS={
            "SECRET_KEY": {
                "ref": "flask#secret_key",
                "rotate": "token",
                "keyring": True,
            },
            "STRIPE_API_KEY": {"ref": "stripe#api_key", "env": "STRIPE_API_KEY"},
        },
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    vault.init_app(app)

    @app.get("/")
    def index() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return f"visit {session['visits']}"

    @app.post("/charge")
    def charge() -> str:
        # Here and not at the start: a new key is in the config while the app runs.
        key: str = current_app.config["STRIPE_API_KEY"]
        return f"charged with the key that ends in {key[-1]}"

    return app
