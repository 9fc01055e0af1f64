"""Notes behind a login, with a JSON API: an app whose secrets come from Vault."""

from __future__ import annotations

import collections.abc as cabc
import pathlib
import typing as t

from flask import Flask

from flask_vault import FlaskVault

from . import api
from . import db
from . import pages

vault = FlaskVault()


def create_app(config: cabc.Mapping[str, t.Any] | None = None) -> Flask:
    """Make the app. Reads Vault, and touches no file before the first request.

    :param config: goes over everything else, for tests.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        DATABASE=str(pathlib.Path(app.instance_path, "notes.sqlite3")),
        # A form of another site is sent without the cookie, so it posts as nobody.
        SESSION_COOKIE_SAMESITE="Lax",
        # Name and password are both "demo": fine for an example, and for nothing else.
        USERS={
            "demo": "scrypt:32768:8:1$Mq2IpkUhQiIEDXKW$"
            "10cd04ca9c98b88409015d6354fe1baf51fcb1743f79488f0af0f0e6bd9adfd2"
            "e326f2ddecfb20b8f46684d119940582da2a5e6d7b68b71a3a973c3d363ae406"
        },
        # The ids come from VAULT_ROLE_ID and VAULT_SECRET_ID in the environment.
        VAULT_AUTH={"method": "approle"},
        VAULT_PREFIX="example/{environment}",
        # Seconds. Short, so that one can watch a rotation arrive; the default is 300.
        VAULT_CACHE_TTL=5,
        VAULT_SECRETS={
            "SECRET_KEY": {
                "ref": "flask#secret_key",
                "rotate": "token",
                "env": "SECRET_KEY",
            },
            "NOTES_API_KEY": {
                "ref": api.API_KEY,
                "rotate": "token",
                "env": "NOTES_API_KEY",
            },
        },
    )
    app.config.from_prefixed_env()

    if config is not None:
        app.config.from_mapping(config)

    vault.init_app(app)
    db.init_app(app)
    app.register_blueprint(pages.bp)
    app.register_blueprint(api.bp)
    return app
