"""Notes behind a login, with a JSON API: an app whose keys and password are in Vault.

They may be rotated at any time: nobody is logged out, no form, token or login at the
database is refused.
"""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from flask import Flask
from flask_jwt_extended import JWTManager
from flask_wtf import CSRFProtect  # type: ignore[import-untyped]

from flask_vault import FlaskVault
from flask_vault.integrations import jwt_extended
from flask_vault.integrations import sqlalchemy
from flask_vault.integrations import wtf

from . import api
from . import db
from . import pages

vault = FlaskVault()
csrf = CSRFProtect()
jwt = JWTManager()


def create_app(config: cabc.Mapping[str, t.Any] | None = None) -> Flask:
    """Make the app. Reads Vault, and connects to nothing else before the first request.

    :param config: goes over everything else, for tests.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SESSION_COOKIE_SAMESITE="Lax",
        JWT_ERROR_MESSAGE_KEY="error",
        # Name and password are both "demo": fine for an example, and for nothing else.
        USERS={
            "demo": "scrypt:32768:8:1$Mq2IpkUhQiIEDXKW$"
            "10cd04ca9c98b88409015d6354fe1baf51fcb1743f79488f0af0f0e6bd9adfd2"
            "e326f2ddecfb20b8f46684d119940582da2a5e6d7b68b71a3a973c3d363ae406"
        },
        # The ids come from VAULT_ROLE_ID and VAULT_SECRET_ID in the environment.
        VAULT_AUTH={"method": "approle"},
        VAULT_PREFIX="example/{environment}",
        # Seconds. Short, so that one can watch; the defaults are 30 and 120.
        VAULT_REFRESH_INTERVAL=1,
        VAULT_PROPAGATION_WINDOW=5,
        VAULT_SECRETS={
            "SECRET_KEY": {
                "ref": "flask#secret_key",
                "rotate": "token",
                "keyring": True,
                "env": "SECRET_KEY",
            },
            "JWT_SECRET_KEY": {
                "ref": "jwt#secret_key",
                "rotate": "token",
                "keyring": True,
                "env": "JWT_SECRET_KEY",
            },
            "SQLALCHEMY_DATABASE_URI": {
                "ref": "database",
                "template": "postgresql+psycopg://{username}:{password}@{host}/{dbname}",
                "rotate": {"kind": "database", "field": "password"},
                "env": "DATABASE_URL",
            },
        },
    )
    app.config.from_prefixed_env()

    if config is not None:
        app.config.from_mapping(config)

    # First, since the others use its keys. Sessions need nothing more.
    vault.init_app(app)
    csrf.init_app(app)
    wtf.init_app(app)
    jwt.init_app(app)
    jwt_extended.init_app(app, jwt)

    db.database.init_app(app)
    sqlalchemy.init_app(app, db.database)
    app.register_blueprint(pages.bp)
    app.register_blueprint(api.bp)
    # A token is sent by a program, never by a browser that was tricked into it.
    csrf.exempt(api.bp)
    return app
