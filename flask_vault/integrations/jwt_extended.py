"""Flask-JWT-Extended: tokens that name their key, so that it may be rotated.

.. code-block:: python

    vault.init_app(app)
    jwt.init_app(app)
    jwt_extended.init_app(app, jwt)
"""

from __future__ import annotations

import collections.abc as cabc
import logging
import typing as t

from flask import current_app
from flask import Flask
from flask.typing import ResponseReturnValue

from ..errors import VaultConfigError
from ..extension import when_loaded
from ..keyring import KeyRing
from ..state import AppState
from .jose import ALGORITHMS
from .jose import checked_keys
from .jose import load_private_key
from .jose import TokenKey

try:
    import jwt as pyjwt
    from flask_jwt_extended import default_callbacks
    from flask_jwt_extended import JWTManager
except ImportError:
    raise VaultConfigError(
        "flask_vault.integrations.jwt_extended needs Flask-JWT-Extended: install"
        " 'flask-vault[jwt]'."
    ) from None

#: Where an app's part is in ``app.extensions``.
_EXTENSION: t.Final = "vault-jwt-extended"

#: Bytes that RFC 7518, 3.2 asks of a shared secret.
_SECRET_LENGTHS: t.Final = {"HS256": 32, "HS384": 48, "HS512": 64}

_log = logging.getLogger("flask_vault")


class UnknownKeyError(pyjwt.InvalidTokenError):
    """A token names a key that this app does not accept, or does not any more."""


def init_app(app: Flask, jwt: JWTManager) -> None:
    """Sign with the key ring of ``JWT_SECRET_KEY`` or ``JWT_PRIVATE_KEY``.

    ``JWT_ALGORITHM`` says which of the two. Call it after ``vault.init_app`` and
    ``jwt.init_app``, and after the loaders of ``jwt`` are set.

    :param jwt: it may serve other apps, too; those without this call stay as they are.
    :raises VaultConfigError: when there is no key ring, its value does not fit the
        algorithm, or ``jwt`` has loaders of yours that choose the keys.
    """
    if app.extensions.get("flask-jwt-extended") is not jwt:
        raise VaultConfigError(
            "jwt_extended.init_app: call jwt.init_app(app) first, with the same"
            " JWTManager."
        )

    loaders = _Loaders.of(jwt)
    app.register_error_handler(UnknownKeyError, loaders.refuse)

    def start(state: AppState) -> None:
        app.extensions[_EXTENSION] = _Tokens(state)

    when_loaded(app, start)


class _Tokens:
    """The keys of one app."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._algorithm: str = state.app.config["JWT_ALGORITHM"]

        if self._algorithm in _SECRET_LENGTHS:
            self._config_key, other = "JWT_SECRET_KEY", "JWT_PRIVATE_KEY"
        elif self._algorithm in ALGORITHMS:
            self._config_key, other = "JWT_PRIVATE_KEY", "JWT_SECRET_KEY"
        else:
            known = ", ".join((*_SECRET_LENGTHS, *ALGORITHMS))
            raise VaultConfigError(
                f"JWT_ALGORITHM is {self._algorithm!r}, which Flask-Vault has no keys"
                f" for: set it to one of {known}."
            )

        if not state.has_ring(self._config_key):
            raise VaultConfigError(self._without_ring(other))

        self._keys = checked_keys(state, self._config_key, self._load)
        self._warn_if_short()
        state.on_change((self._config_key,), lambda *_: self._warn_if_short())

    def signing(self) -> TokenKey:
        # Header and key are asked for one after the other. Both see the ring that is
        # pinned for the context.
        return self._keys.signing(self._state.keyring(self._config_key))

    def verifying(
        self, header: cabc.Mapping[str, t.Any], claims: cabc.Mapping[str, t.Any]
    ) -> TokenKey:
        """The key that has to have signed a token.

        :raises UnknownKeyError: when the token names one that is not accepted.
        :raises jwt.InvalidAlgorithmError: for an algorithm that the key is not for.
        """
        if "kid" in header:
            key = self._named(header["kid"])
        else:
            key = self._unnamed(claims.get("iat"))

        # The app may allow several algorithms (JWT_DECODE_ALGORITHMS), and a public key
        # must never be taken for a shared secret.
        if header.get("alg") not in key.algorithms:
            raise pyjwt.InvalidAlgorithmError("The specified alg value is not allowed")

        return key

    def _named(self, kid: object) -> TokenKey:
        name, state = self._config_key, self._state
        found = self._find(state.keyring(name), kid)

        # Something that a worker ahead of this one may have signed with.
        if found is None:
            found = self._find(state.current_ring(name), kid)

        if found is None:
            state.ask()
            # Whatever it says: a round may have come just before the question.
            found = self._find(state.current_ring(name), kid)

        if found is None:
            raise UnknownKeyError("The token's key is unknown or no longer accepted")

        return found

    def _find(self, ring: KeyRing, kid: object) -> TokenKey | None:
        return next((key for key in self._keys.of(ring) if key.kid == kid), None)

    def _unnamed(self, issued: object) -> TokenKey:
        """The key of a token from before the adoption of this integration.

        The one that signed when the token says it was made. When the claim lies, the
        signature does not fit.
        """
        ring = self._state.keyring(self._config_key)
        keys = self._keys.of(ring)

        if isinstance(issued, int | float):
            for key, token_key in zip(ring.accepted, keys, strict=True):
                # The claim is in whole seconds.
                if int(key.signs_at.timestamp()) <= issued:
                    return token_key

        return keys[-1]

    def _load(self, id: str, value: t.Any) -> TokenKey:
        if self._algorithm in ALGORITHMS:
            return load_private_key(value, self._algorithm)

        if not isinstance(value, str | bytes):
            raise ValueError(
                f"it is of type {type(value).__name__}, and JWT_ALGORITHM"
                f" {self._algorithm!r} takes text or bytes: leave 'cast' out of the"
                " entry."
            )

        try:
            pyjwt.get_algorithm_by_name(self._algorithm).prepare_key(value)
        except pyjwt.InvalidKeyError:
            pass
        else:
            return TokenKey(id, value, value, tuple(_SECRET_LENGTHS))

        # The public half of it is known to everybody.
        raise ValueError(
            f"it is an asymmetric key, and JWT_ALGORITHM {self._algorithm!r} takes a"
            " secret that signs and verifies. To sign with a private key, name the"
            " entry JWT_PRIVATE_KEY and set JWT_ALGORITHM to 'RS256', 'ES256' or"
            " 'EdDSA'."
        )

    def _warn_if_short(self) -> None:
        least = _SECRET_LENGTHS.get(self._algorithm, 0)
        value = self._state.app.config.get(self._config_key)
        size = len(value.encode() if isinstance(value, str) else value or b"")

        if value is not None and size < least:
            _log.warning(
                "%s has %d bytes, and %s asks for %d or more (RFC 7518): add 'rotate':"
                " {'generator': 'token', 'bytes': %d} to its entry, and rotate it.",
                self._config_key,
                size,
                self._algorithm,
                least,
                least,
            )

    def _without_ring(self, other: str) -> str:
        key = self._config_key

        if self._state.has_ring(other):
            hint = (
                f"{other} has one, which is for another algorithm: set JWT_ALGORITHM to"
                f" {'HS256' if other == 'JWT_SECRET_KEY' else 'RS256, ES256 or EdDSA'},"
                f" or declare {key}."
            )
        else:
            hint = (
                f"Declare it in VAULT_SECRETS, as {key!r}: {{'ref':"
                " 'path#field', 'keyring': True}."
            )

        return f"{key}, with which {self._algorithm!r} signs, has no key ring. {hint}"


class _Loaders:
    """The callbacks of a manager. It may serve several apps, so they ask which it is.

    :param headers: the user's own loader of headers.
    """

    #: By the decorator that sets it: where a manager keeps a callback, and what is
    #: there by itself. It has no public way to ask.
    _PLACES: t.Final[cabc.Mapping[str, tuple[str, cabc.Callable[..., t.Any]]]] = {
        "additional_headers_loader": (
            "_jwt_additional_header_callback",
            default_callbacks.default_jwt_headers_callback,
        ),
        "encode_key_loader": (
            "_encode_key_callback",
            default_callbacks.default_encode_key_callback,
        ),
        "decode_key_loader": (
            "_decode_key_callback",
            default_callbacks.default_decode_key_callback,
        ),
    }

    def __init__(self, manager: JWTManager, headers: cabc.Callable[..., t.Any]) -> None:
        self._manager = manager
        self._headers = headers
        manager.additional_headers_loader(self.headers)
        manager.encode_key_loader(self.encode_key)
        manager.decode_key_loader(self.decode_key)

    @classmethod
    def of(cls, manager: JWTManager) -> _Loaders:
        """Those of a manager, which are set when they are not.

        :raises VaultConfigError: when the user has set what cannot be kept.
        """
        headers = cls._present(manager, "additional_headers_loader")
        present = getattr(headers, "__self__", None)

        if isinstance(present, _Loaders):
            present._check_in_place()
            return present

        for name in ("encode_key_loader", "decode_key_loader"):
            if cls._present(manager, name) is not cls._PLACES[name][1]:
                raise VaultConfigError(
                    f"jwt_extended.init_app: the {name} of the JWTManager is yours. It"
                    " chooses a key, and so does the key ring; only one of them can:"
                    f" remove the {name}, or this call."
                )

        return cls(manager, headers)

    @classmethod
    def _present(cls, manager: JWTManager, name: str) -> cabc.Callable[..., t.Any]:
        attribute, default = cls._PLACES[name]
        return t.cast("cabc.Callable[..., t.Any]", getattr(manager, attribute, default))

    def _check_in_place(self) -> None:
        ours = {
            "additional_headers_loader": self.headers,
            "encode_key_loader": self.encode_key,
            "decode_key_loader": self.decode_key,
        }

        for name, callback in ours.items():
            attribute, _ = self._PLACES[name]
            present: object = getattr(self._manager, attribute, callback)

            if present != callback:
                raise VaultConfigError(
                    f"The {name} of the JWTManager was set after jwt_extended.init_app,"
                    " and took the place of the key ring's: set it before, or remove"
                    " it."
                )

    def headers(self, identity: t.Any) -> dict[str, t.Any]:
        headers = self._headers(identity)

        if (tokens := _tokens()) is None:
            return t.cast("dict[str, t.Any]", headers)

        self._check_in_place()
        return {**headers, "kid": tokens.signing().kid}

    def encode_key(self, identity: t.Any) -> t.Any:
        if (tokens := _tokens()) is None:
            return default_callbacks.default_encode_key_callback(identity)

        self._check_in_place()
        return tokens.signing().signs

    def decode_key(self, header: dict[str, t.Any], claims: dict[str, t.Any]) -> t.Any:
        if (tokens := _tokens()) is None:
            return default_callbacks.default_decode_key_callback(header, claims)

        return tokens.verifying(header, claims).verifies

    def refuse(self, error: UnknownKeyError) -> ResponseReturnValue:
        """What the extension, or the user, answers to an invalid token.

        The extension's own answer is a 422, after which a client does not log in anew.
        """
        invalid = pyjwt.InvalidTokenError(str(error))
        answer = current_app.handle_user_exception(invalid)
        response = current_app.make_response(answer)
        default = default_callbacks.default_invalid_token_callback
        # There is no public way to ask whether the user has set a loader.
        loader = getattr(self._manager, "_invalid_token_callback", None)

        if loader is default and response.status_code == 422:
            response.status_code = 401

        return response


def _tokens() -> _Tokens | None:
    """Those of the current app; ``None`` when it does not use this integration."""
    tokens: _Tokens | None = current_app.extensions.get(_EXTENSION)
    return tokens
