"""Has an app look after its secrets before it serves a request."""

from __future__ import annotations

import collections.abc as cabc
import os
import time
import typing as t

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication
    from _typeshed.wsgi import WSGIEnvironment

    from .state import AppState


class Touching:
    """WSGI middleware that touches the state of an app."""

    def __init__(self, wsgi_app: WSGIApplication, state: AppState) -> None:
        self.wsgi_app = wsgi_app
        self._state = state
        self._refresher = state.refresher

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> cabc.Iterable[bytes]:
        here = self._refresher.here

        # Each call that is not made here counts: there are thousands in a second.
        if (
            here is None
            or time.monotonic() >= here.look_at
            # A server may fork without a word to Python.
            or here.pid != os.getpid()
        ):
            self._state.touch()

        return self.wsgi_app(environ, start_response)
