"""An app of which two hosts run four workers each: sessions, tokens and forms.

Every answer tells which worker gave it, and which versions of the keys that one knows.
"""

from __future__ import annotations

import os
import typing as t

from flask import Flask
from flask import jsonify
from flask import request
from flask import session
from flask_jwt_extended import create_access_token
from flask_jwt_extended import get_jwt_identity
from flask_jwt_extended import jwt_required
from flask_jwt_extended import JWTManager
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]
from flask_wtf.csrf import generate_csrf  # type: ignore[import-untyped]

from flask_vault import FlaskVault
from flask_vault.integrations import jwt_extended
from flask_vault.integrations import wtf

vault = FlaskVault()
KEYS = ("SECRET_KEY", "JWT_SECRET_KEY")


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = {
        "SECRET_KEY": {"ref": "flask#key", "rotate": "token", "keyring": True},
        "JWT_SECRET_KEY": {"ref": "jwt#key", "rotate": "token", "keyring": True},
    }
    vault.init_app(app)
    jwt = JWTManager(app)
    jwt_extended.init_app(app, jwt)
    CSRFProtect(app)
    wtf.init_app(app)

    @app.get("/count")
    def count() -> t.Any:
        session["count"] = session.get("count", 0) + 1
        return answer(count=session["count"])

    @app.get("/look")
    def look() -> t.Any:
        return answer(count=session.get("count"))

    @app.get("/token")
    def log_in() -> t.Any:
        return answer(token=create_access_token("ada"))

    @app.get("/me")
    @jwt_required()  # type: ignore[untyped-decorator]
    def me() -> t.Any:
        return answer(name=get_jwt_identity())

    @app.get("/form")
    def show_form() -> t.Any:
        return answer(form=generate_csrf())

    @app.post("/form")
    def take_form() -> t.Any:
        return answer(text=request.form["text"])

    return app


def answer(**found: object) -> t.Any:
    rings = [vault.keyring(key) for key in KEYS]
    return jsonify(
        **found,
        pid=os.getpid(),
        signs=min(ring.signing.version for ring in rings),
        accepts=min(ring.accepted[0].version for ring in rings),
    )
