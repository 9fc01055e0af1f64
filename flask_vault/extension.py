"""``FlaskVault``: wires the parts to an app."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import typing as t

from flask import current_app
from flask import Flask
from flask import has_app_context

from .client import VaultClient
from .entries import parse_entries
from .errors import VaultConfigError
from .errors import VaultError
from .errors import without_frames
from .health import new_blueprint
from .invocation import as_operator
from .invocation import for_cli
from .invocation import Inspected
from .invocation import is_only_asked_for_help
from .invocation import MODE
from .settings import Settings
from .state import AppState
from .state import state_of

_log = logging.getLogger("flask_vault")


class FlaskVault:
    """Fills ``app.config`` from Vault, and gives access to it.

    :param app: initialized at once when given; else call :meth:`init_app`.
    """

    def __init__(self, app: Flask | None = None) -> None:
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

        try:
            self._init_app(app)
        except VaultError as error:
            failure = without_frames(error)
        else:
            return

        raise for_cli(failure)

    def _init_app(self, app: Flask) -> None:
        mode = MODE.get()
        settings = Settings.from_mapping(app.config)

        if settings.backup_dir is None:
            directory = pathlib.Path(app.instance_path, "vault-backups")
            settings = dataclasses.replace(settings, backup_dir=directory)

        if mode is not None:
            settings = as_operator(settings)

        state = AppState(app, settings, parse_entries(app.config.get("VAULT_SECRETS")))

        if mode == "inspect":
            raise Inspected(state, None)

        if not state.entries:
            _log.warning(
                "VAULT_SECRETS is empty, so nothing is read from Vault at start-up:"
                " declare what the app needs, such as"
                " VAULT_SECRETS = {'STRIPE_KEY': 'stripe#api_key'}."
            )

        if settings.skip_verify and not app.debug:
            _log.warning(
                "VAULT_SKIP_VERIFY is on and the app is not in debug mode: anybody on"
                " the network can pose as Vault and read the token. Set VAULT_CACERT"
                " instead."
            )

        if mode is None and is_only_asked_for_help():
            state.postpone()
        else:
            try:
                state.load()
            except VaultError as error:
                if mode is None:
                    raise

                raise Inspected(state, without_frames(error)) from None

        app.extensions["vault"] = state

        if settings.health:
            app.register_blueprint(new_blueprint(state))

    @property
    def client(self) -> VaultClient:
        """The client of the current app.

        :raises RuntimeError: outside of an app context.
        """
        return get_vault_client()

    def __repr__(self) -> str:
        if has_app_context() and "vault" in current_app.extensions:
            return f"<{type(self).__name__} {get_vault_client().settings.address}>"

        return f"<{type(self).__name__}>"


def get_vault_client() -> VaultClient:
    """The client of the current app.

    :raises RuntimeError: outside of an app context, or when the app has no FlaskVault.
    """
    return state_of(current_app).client


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
