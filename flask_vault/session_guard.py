"""A session cookie that cannot be verified is not overwritten by a host that is behind.

With ``VAULT_SESSION_GUARD``. A worker that does not know the key of a cookie sees an
empty session. When the view writes to it, the cookie is replaced, and the user is
logged out on the other hosts, too (measured). So such a worker asks Vault once; and
when it knows that it is cut off, it sends no cookie in that response.
"""

from __future__ import annotations

import typing as t
import weakref

from flask import Flask
from flask import g
from flask import Request
from flask import Response
from flask.sessions import SecureCookieSession
from flask.sessions import SecureCookieSessionInterface
from flask.sessions import SessionMixin
from itsdangerous import BadSignature
from itsdangerous import SignatureExpired

from .errors import VaultConfigError
from .state import AppState


class GuardedSessionInterface(SecureCookieSessionInterface):
    """Flask's own cookie sessions, for workers that may be behind."""

    def __init__(self, state: AppState) -> None:
        # The app has us, and the state has the app.
        self._state = weakref.ref(state)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        g.pop("_vault_foreign_session", None)
        session = super().open_session(app, request)

        # Flask gives an empty one for a cookie that it cannot verify.
        if session or not self._is_foreign(app, request):
            return session

        state = self._state()

        if state is not None:
            state.ask()
            # Whatever it says: a round may have come just before the question.
            session = super().open_session(app, request)

        if not session and self._is_foreign(app, request):
            g._vault_foreign_session = True

        return session

    def save_session(
        self, app: Flask, session: SessionMixin, response: Response
    ) -> None:
        state = self._state()

        if (
            g.get("_vault_foreign_session", False)
            and state is not None
            and state.is_stale
        ):
            # What the view did to it is lost; the user's session is not.
            response.vary.add("Cookie")
            return

        super().save_session(app, session, response)

    def _is_foreign(self, app: Flask, request: Request) -> bool:
        """Whether there is a cookie that none of our keys has signed."""
        cookie = request.cookies.get(self.get_cookie_name(app))

        if not cookie:
            return False

        serializer = self.get_signing_serializer(app)

        if serializer is None:
            return False

        try:
            serializer.loads(cookie)
        except SignatureExpired:
            return False
        except BadSignature:
            return True

        return False


def guard(app: Flask, state: AppState) -> None:
    """Give an app the guarded sessions.

    :raises VaultConfigError: when it has sessions of another kind, which no key signs.
    """
    present: t.Any = app.session_interface

    if type(present) is not SecureCookieSessionInterface:
        raise VaultConfigError(
            "VAULT_SESSION_GUARD guards Flask's own cookie sessions, and the app has"
            f" those of {type(present).__name__}: unset it, or initialize FlaskVault"
            " before, and derive the other from"
            " flask_vault.session_guard.GuardedSessionInterface."
        )

    app.session_interface = GuardedSessionInterface(state)
