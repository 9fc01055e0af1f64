"""``FlaskVault``: wires the parts to an app.

What an app needs to be built for ``flask --help`` is imported here; the rest when it is
initialized, since everybody pays for that command in each project.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import typing as t
import weakref

from flask import current_app
from flask import Flask
from flask import has_app_context

from .errors import VaultConfigError
from .errors import VaultError
from .errors import without_frames
from .invocation import for_cli
from .invocation import will_not_use_it
from .middleware import Touching
from .placeholders import placeholders

if t.TYPE_CHECKING:
    from werkzeug.local import LocalProxy

    from .client import VaultClient
    from .keyring import KeyRing
    from .redaction import Redaction
    from .state import AppState
    from .state import Refreshed
    from .telling import Hook

H = t.TypeVar("H", bound="Hook")

#: Where the callbacks of an app are that is not loaded yet.
_WAITING: t.Final = "vault-waiting"

R = t.TypeVar("R", bound=type)

#: The current app itself. An attribute read through the proxy costs ten times as much.
_present_app = t.cast("LocalProxy[Flask]", current_app)._get_current_object


class FlaskVault:
    """Fills ``app.config`` from Vault, and gives access to it.

    :param app: initialized at once when given; else call :meth:`init_app`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._hooks: list[tuple[frozenset[str], Hook]] = []
        self._states: list[weakref.ref[AppState]] = []
        self._redaction: Redaction | None = None

        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the secrets that ``VAULT_SECRETS`` declares into ``app.config``.

        Call it when the app is configured, and before the extensions that read config
        once (database, limiter, cache, mail). The keys are those of
        :doc:`/configuration`; what is changed in them later has no effect.

        :raises VaultError: when the config is wrong or a required secret cannot be had.
            ``app.config`` is then as it was.
        """
        if "vault" in app.extensions:
            raise VaultConfigError(
                "A FlaskVault has already been initialized with this app: use that one,"
                " or flask_vault.get_vault_client(), instead of calling init_app again."
            )

        if will_not_use_it():
            _postpone(app)
            when_loaded(app, lambda state: self._wire(app, state))
            return

        state = _load(app)
        app.extensions["vault"] = state
        self._wire(app, state)

        if state.settings.enabled and state.settings.refresh_mode != "off":
            # Before the session is opened, which a hook of the request is not.
            app.wsgi_app = Touching(app.wsgi_app, state)  # type: ignore[method-assign]

        if state.settings.health:
            from .health import new_blueprint

            app.register_blueprint(new_blueprint(state))

    @property
    def client(self) -> VaultClient:
        """The client of the current app.

        :raises RuntimeError: outside of an app context.
        """
        return get_vault_client()

    def rotator(self, name: str) -> cabc.Callable[[R], R]:
        """A decorator that gives a rotator class a name for ``kind`` in ``rotate``.

        .. code-block:: python

            @vault.rotator("stripe")
            class StripeRotator(Rotator): ...

        The name holds for all apps of the process. The module has to be imported by the
        app's factory, or the name is not known: :doc:`/rotators`.

        :raises VaultConfigError: when a rotator of Flask-Vault's own has that name.
        """
        from .rotation.registry import register

        return register(name)

    def keyring(self, key: str) -> KeyRing:
        """The key ring of a config key of the current app.

        Within an app context it is the same one, whatever happens meanwhile.

        :param key: of an entry with ``keyring``.
        :raises VaultConfigError: when there is no ring.
        :raises RuntimeError: outside of an app context.
        """
        return state_of(_present_app()).keyring(key)

    def refresh(self, app: Flask | None = None) -> Refreshed:
        """Ask Vault for every path now, and take over what is good.

        It raises nothing: what could not be read is in the answer, and the app goes on
        with what it has.

        :param app: the current app when it is ``None``.
        """
        return state_of(_present_app() if app is None else app).refresh()

    def start(self, app: Flask | None = None) -> None:
        """Start the refresh thread of this process.

        For processes that serve no requests, such as a Celery worker; in the others the
        first request does it. Call it after a fork.

        :param app: the current app when it is ``None``.
        """
        state_of(_present_app() if app is None else app).start()

    def on_rotate(self, *keys: str) -> cabc.Callable[[H], H]:
        """Have a function called when ``app.config`` has another value for a key.

        It is called in an app context with the config key and the version, in each
        process, by the thread that sends the signals. What it raises is logged. For
        what reads its config once::

            @vault.on_rotate("CACHE_REDIS_URL")
            def reconnect(key: str, version: int | None) -> None:
                cache.init_app(current_app)

        :param keys: config keys of ``VAULT_SECRETS``.
        """

        def register(hook: H) -> H:
            self._hooks.append((frozenset(keys), hook))
            return hook

        return register

    def redact(self, target: logging.Logger | logging.Handler) -> None:
        """Mask the secrets of this extension's apps in what others log.

        Call it when logging is configured, and with the root logger for all that
        reaches its handlers::

            vault.redact(logging.getLogger())

        :doc:`/monitoring` says what is masked. A value of less than 8 characters is
        not.

        :param target: a logger, with the handlers that it has now, or a handler.
        """
        from .redaction import Redaction

        if self._redaction is None:
            self._redaction = Redaction(lambda: self._states)

        self._redaction.cover(target)

    def _wire(self, app: Flask, state: AppState) -> None:
        state.teller.hook_lists.append(self._hooks)
        self._states = [*(r for r in self._states if r()), weakref.ref(state)]
        state.observers.changed()

        if state.settings.session_guard:
            from .session_guard import guard

            guard(app, state)

    def __repr__(self) -> str:
        if has_app_context():
            with contextlib.suppress(RuntimeError):
                addresses = get_vault_client().settings.addresses
                return f"<{type(self).__name__} {' or '.join(addresses)}>"

        return f"<{type(self).__name__}>"


def _load(app: Flask) -> AppState:
    """The loaded state of an app; errors leave without the frames they came through."""
    from .loading import new_state

    try:
        return new_state(app)
    except VaultError as error:
        failure = without_frames(error)

    raise for_cli(failure)


def _postpone(app: Flask) -> None:
    """Let the app be built without Vault, as far as ``flask --help`` needs it.

    The keys get values of the right type that open nothing, so that the extensions
    after this one find something. Should the app serve a request all the same, it is
    loaded first.
    """
    for key, value in placeholders(app.config.get("VAULT_SECRETS")).items():
        if app.config.get(key) is None:
            app.config[key] = value

    waiting: list[cabc.Callable[[AppState], None]] = []
    app.extensions[_WAITING] = waiting

    @app.before_request
    def load_before_the_first_request() -> None:
        if "vault" in app.extensions:
            return

        state = app.extensions["vault"] = _load(app)

        for callback in waiting:
            callback(state)


def when_loaded(app: Flask, callback: cabc.Callable[[AppState], None]) -> None:
    """Call back with what Flask-Vault keeps for an app, as soon as it has it.

    That is now, except under ``flask --help`` and the like, which build an app without
    reading its secrets.

    :raises RuntimeError: when ``init_app`` was not called.
    """
    waiting = app.extensions.get(_WAITING)

    if waiting is None or "vault" in app.extensions:
        callback(state_of(app))
    else:
        waiting.append(callback)


def state_of(app: Flask) -> AppState:
    """What Flask-Vault keeps for an app.

    :raises RuntimeError: when there is nothing, with the two likely causes.
    """
    state: AppState | None = app.extensions.get("vault")

    if state is None:
        raise RuntimeError(
            f"The app {app.name!r} has no FlaskVault: call vault.init_app(app) in its"
            " factory, or check that this is the app you mean."
        )

    return state


def get_vault_client() -> VaultClient:
    """The client of the current app.

    :raises RuntimeError: outside of an app context, or when the app has no FlaskVault.
    """
    return state_of(_present_app()).client


def get_secret(
    path: str,
    field: str | None = None,
    fallback_env: str | None = None,
    use_cache: bool = True,
) -> t.Any:
    """Read a secret with the client of the current app.

    The same as :meth:`flask_vault.VaultClient.get_secret`.
    """
    return get_vault_client().get_secret(path, field, fallback_env, use_cache)
