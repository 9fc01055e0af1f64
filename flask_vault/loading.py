"""From an app's config to its loaded state."""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import os
import pathlib

from flask import Flask

from .entries import parse_entries
from .errors import VaultConfigError
from .errors import VaultError
from .errors import without_frames
from .invocation import MODE
from .invocation import WRITES
from .settings import ENVIRONMENT
from .settings import Settings
from .state import AppState

_log = logging.getLogger("flask_vault")


#: The last state that was made in this context: a command has use for it when the app's
#: factory fails after that.
MADE: contextvars.ContextVar[AppState | None] = contextvars.ContextVar(
    "flask_vault_made", default=None
)


class Inspected(BaseException):
    """Leaves an app's factory with what a ``flask vault`` command came for.

    No :exc:`Exception`, so that no factory takes it for a failure of its own.

    :param error: why the app could not be loaded, if that was tried.
    """

    def __init__(self, state: AppState, error: VaultError | None) -> None:
        super().__init__()
        self.state = state
        self.error = error


class Examined(BaseException):
    """Leaves an app's factory with the app itself, before its settings are read."""

    def __init__(self, app: Flask) -> None:
        super().__init__()
        self.app = app


def new_state(app: Flask) -> AppState:
    """Check the config of an app, read its secrets, and set them in ``app.config``.

    :raises VaultError: when the config is wrong or a required secret cannot be had.
    :raises Inspected: when a ``flask vault`` command wants no more than the settings.
    :raises Examined: when it wants no more than the app.
    """
    mode = MODE.get()

    if mode == "examine":
        raise Examined(app)

    settings = with_backup_dir(Settings.from_mapping(app.config), app)

    if mode is not None:
        # The cache is the app's: a person's command would leave a file of another user.
        settings = dataclasses.replace(
            _as_operator(settings, WRITES.get()), bootstrap_cache=None
        )

    if settings.health and settings.health_blueprint in app.blueprints:
        raise VaultConfigError(
            "VAULT_HEALTH_BLUEPRINT: the app has a blueprint"
            f" {settings.health_blueprint!r} already: set it to another name, or"
            " VAULT_HEALTH to False."
        )

    state = AppState(app, settings, parse_entries(app.config.get("VAULT_SECRETS")))

    if mode == "inspect":
        raise Inspected(state, None)

    # For a command alone: what is set here lives as long as the process.
    if mode is not None:
        MADE.set(state)

    _warn(app, state)

    try:
        # A person who runs a command reads the error and runs it again.
        state.load(state.settings.startup_timeout if mode is None else 0.0)
    except VaultError as error:
        if mode is None:
            raise

        raise Inspected(state, without_frames(error)) from None

    return state


def with_backup_dir(settings: Settings, app: Flask) -> Settings:
    """The settings with the place of the backups, which the app has a say in."""
    if settings.backup_dir is not None:
        return settings

    directory = pathlib.Path(app.instance_path, "vault-backups")
    return dataclasses.replace(settings, backup_dir=directory)


def _warn(app: Flask, state: AppState) -> None:
    if not state.entries:
        _log.warning(
            "VAULT_SECRETS is empty, so nothing is read from Vault at start-up: declare"
            " what the app needs, such as VAULT_SECRETS = {'STRIPE_KEY':"
            " 'stripe#api_key'}."
        )

    settings = state.settings
    least = 2 * settings.refresh_interval

    if (
        0 < settings.propagation_window < least
        and settings.refresh_mode != "off"
        and any(entry.secret.keyring for entry in state.entries)
    ):
        _log.warning(
            "VAULT_PROPAGATION_WINDOW is %g s, less than two of VAULT_REFRESH_INTERVAL"
            " (%g s): a worker may meet a new key before it has asked for it. Raise the"
            " one or lower the other.",
            settings.propagation_window,
            settings.refresh_interval,
        )

    if settings.skip_verify and not app.debug:
        _log.warning(
            "VAULT_SKIP_VERIFY is on and the app is not in debug mode: anybody on the"
            " network can pose as Vault and read the token. Set VAULT_CACERT instead."
        )


def _as_operator(settings: Settings, writes: bool) -> Settings:
    """Who a ``flask vault`` command is: the person whose token is in the environment,
    or whoever may write, or the app itself."""
    for name in ENVIRONMENT["VAULT_TOKEN"]:
        token = os.environ.get(name, "").strip()

        if token:
            return dataclasses.replace(settings, token=token, auth=None)

    if writes and settings.rotate_auth is not None:
        return dataclasses.replace(
            settings, auth=settings.rotate_auth, auth_key="VAULT_ROTATE_AUTH"
        )

    return settings
