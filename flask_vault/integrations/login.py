"""Flask-Login: remember-me cookies survive a rotation of ``SECRET_KEY``.

.. code-block:: python

    from flask_vault.integrations.login import LoginManager

    login_manager = LoginManager()      # instead of flask_login's
    vault.init_app(app)
    login_manager.init_app(app)
"""

from __future__ import annotations

import typing as t

from flask import current_app
from flask import Flask
from flask import request
from flask import session

from ..errors import VaultConfigError
from ..extension import state_of
from ..extension import when_loaded
from ..state import AppState

try:
    import flask_login  # type: ignore[import-untyped]
    from flask_login import COOKIE_NAME
    from flask_login import decode_cookie
    from flask_login import encode_cookie
except ImportError:
    raise VaultConfigError(
        "flask_vault.integrations.login needs Flask-Login: pip install"
        " 'flask-vault[login]'."
    ) from None


class LoginManager(flask_login.LoginManager):  # type: ignore[misc]
    """Flask-Login's own, which accepts what any key of the ring has signed.

    New cookies are signed with ``SECRET_KEY`` as ever, which is the key that signs.
    """

    def init_app(self, app: Flask, add_context_processor: bool = True) -> None:
        """As Flask-Login's, after ``vault.init_app``.

        :raises VaultConfigError: when ``SECRET_KEY`` has no key ring.
        """
        when_loaded(app, _check)
        super().init_app(app, add_context_processor)

    # Flask-Login 0.6 has no public hook for the cookie's key.
    def _load_user_from_remember_cookie(self, cookie: str) -> t.Any:
        user_id = _user_id_in(cookie)

        if user_id is None:
            return None

        while True:
            key = current_app.config["SECRET_KEY"]
            signed = encode_cookie(user_id, key=key)
            user = super()._load_user_from_remember_cookie(signed)

            # It reads the config itself, and a refresh may have been in between.
            if user is not None or current_app.config["SECRET_KEY"] == key:
                return user


def login_remembered() -> bool:
    """As :func:`flask_login.login_remembered`, with all keys of the ring."""
    name = current_app.config.get("REMEMBER_COOKIE_NAME", COOKIE_NAME)
    cookie = request.cookies.get(name)

    if cookie is None or session.get("_remember") == "clear":
        return False

    return _user_id_in(cookie) is not None


def _user_id_in(cookie: str) -> str | None:
    """The user that a cookie remembers; ``None`` when no key of the ring signed it."""
    state = state_of(current_app._get_current_object())  # type: ignore[attr-defined]

    if not state.has_ring("SECRET_KEY"):
        return _decoded(cookie, None)

    for key in state.keyring("SECRET_KEY").accepted:
        user_id = _decoded(cookie, key.value)

        if user_id is not None:
            return user_id

    return None


def _decoded(cookie: str, key: t.Any) -> str | None:
    user_id: str | None = decode_cookie(cookie, key=key)
    return user_id


def _check(state: AppState) -> None:
    if state.settings.enabled:
        # It raises the sentence that says how to add one.
        state.keyring("SECRET_KEY")

    if not hasattr(flask_login.LoginManager, "_load_user_from_remember_cookie"):
        raise VaultConfigError(
            "This release of Flask-Login loads remember-me cookies in another way than"
            " Flask-Vault knows: install Flask-Login 0.6, or a newer Flask-Vault."
        )
