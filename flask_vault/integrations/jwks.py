"""The public keys of a ring, for services that verify this app's tokens.

.. code-block:: python

    vault.init_app(app)
    app.register_blueprint(jwks.blueprint())   # GET /.well-known/jwks.json
"""

from __future__ import annotations

import json
import typing as t

from flask import Blueprint
from flask import current_app
from flask import Flask
from flask import request
from flask import Response
from flask.blueprints import BlueprintSetupState

from ..errors import VaultConfigError
from ..extension import state_of
from ..extension import when_loaded
from ..state import AppState
from .jose import ALGORITHMS
from .jose import checked_keys
from .jose import load_private_key
from .jose import public_jwk
from .jose import thumbprint
from .jose import TokenKeys

__all__ = ["blueprint", "thumbprint"]

#: Where the keys of an app are in ``app.extensions``, by config key and algorithm.
_EXTENSION: t.Final = "vault-jwks"


def blueprint(
    key: str = "JWT_PRIVATE_KEY",
    url_prefix: str | None = "/.well-known",
    *,
    algorithm: str | None = None,
    name: str = "vault_jwks",
) -> Blueprint:
    """A blueprint with one route, ``jwks.json``: a JWK Set (RFC 7517).

    It has every key that is accepted, also one that does not sign yet, so that a
    verifier knows it in time. To be registered after ``vault.init_app``.

    :param key: the config key of an entry with ``keyring``, of a private key in PEM.
    :param algorithm: the ``alg`` of the keys. Default ``JWT_ALGORITHM``, and where that
        is for shared secrets, the usual one of each key.
    :param name: of the blueprint.
    :raises VaultConfigError: when it is registered with an app that has no such ring,
        or the value is no private key.
    """
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise VaultConfigError(
            f"jwks.blueprint: {algorithm!r} is no algorithm that signs with a private"
            f" key: choose one of {', '.join(ALGORITHMS)}."
        )

    routes = Blueprint(name, __name__, url_prefix=url_prefix)

    @routes.record
    def register(setup: BlueprintSetupState) -> None:
        app = t.cast(Flask, setup.app)

        def start(state: AppState) -> None:
            keys = _checked(state, key, algorithm or _algorithm_of(app))
            app.extensions.setdefault(_EXTENSION, {})[key, algorithm] = keys

        when_loaded(app, start)

    @routes.get("/jwks.json")
    def jwks() -> Response:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        state = state_of(app)
        keys: TokenKeys = app.extensions[_EXTENSION][key, algorithm]
        alg = algorithm or _algorithm_of(app)
        found = [
            public_jwk(token_key, alg or token_key.algorithms[0])
            for token_key in keys.of(state.keyring(key))
        ]
        return _answer(found, state.settings.propagation_window)

    return routes


def _algorithm_of(app: Flask) -> str | None:
    algorithm = app.config.get("JWT_ALGORITHM")
    return algorithm if algorithm in ALGORITHMS else None


def _checked(state: AppState, config_key: str, algorithm: str | None) -> TokenKeys:
    if not state.has_ring(config_key):
        raise VaultConfigError(
            f"jwks.blueprint: {config_key} has no key ring: declare it in"
            f" VAULT_SECRETS, as {config_key!r}: {{'ref': 'path#field', 'keyring':"
            " True}."
        )

    return checked_keys(
        state, config_key, lambda id, value: load_private_key(value, algorithm)
    )


def _answer(keys: list[dict[str, str]], window: float) -> Response:
    # The same key may be there twice, with another line end.
    unique = list({jwk["kid"]: jwk for jwk in keys}.values())
    response = Response(
        json.dumps({"keys": unique}), mimetype="application/jwk-set+json"
    )
    # A worker may learn of a key in the first half of the window; who caches its answer
    # for the other half has the key in time.
    response.cache_control.public = True
    response.cache_control.max_age = int(window / 2)
    response.add_etag()
    response.make_conditional(request)
    return response
