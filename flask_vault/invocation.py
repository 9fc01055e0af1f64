"""What this process was started for, as far as it decides how an app is loaded."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import contextvars
import dataclasses
import os
import pathlib
import sys
import typing as t

import click
from flask.cli import NoAppException

from .errors import VaultError
from .settings import ENVIRONMENT
from .settings import Settings
from .state import AppState

#: How a ``flask vault`` command wants an app: ``inspect`` needs its settings alone, and
#: must work before there is a Vault; ``tolerate`` loads it, and takes what it gets.
Mode = t.Literal["inspect", "tolerate"]

MODE: contextvars.ContextVar[Mode | None] = contextvars.ContextVar(
    "flask_vault_mode", default=None
)


class Inspected(BaseException):
    """Leaves an app's factory with what a ``flask vault`` command came for.

    No :exc:`Exception`, so that no factory takes it for a failure of its own.
    """

    def __init__(self, state: AppState, error: VaultError | None) -> None:
        super().__init__()
        self.state = state
        self.error = error


@contextlib.contextmanager
def loading(mode: Mode) -> cabc.Iterator[None]:
    """Have apps that are made inside loaded as a ``flask vault`` command needs."""
    token = MODE.set(mode)

    try:
        yield
    finally:
        MODE.reset(token)


def as_operator(settings: Settings) -> Settings:
    """A person's token from the environment goes before the app's own login."""
    for name in ENVIRONMENT["VAULT_TOKEN"]:
        token = os.environ.get(name, "").strip()

        if token:
            return dataclasses.replace(settings, token=token, auth=None)

    return settings


def is_only_asked_for_help() -> bool:
    """Whether this process builds the app to list its commands, and will run none."""
    program = pathlib.Path(sys.argv[0]).name.replace("-", "_").replace(".", "_")

    # The shell's completion runs without a click context.
    if os.environ.get(f"_{program}_COMPLETE".upper()):
        return True

    context = click.get_current_context(silent=True)

    # In a command's own callback, as in "flask run", the context is not a group's.
    if context is None or not isinstance(context.command, click.Group):
        return False

    arguments = sys.argv[1:]

    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]

    return "--help" in arguments or not arguments


def for_cli(error: VaultError) -> VaultError:
    """The same error, which the ``flask`` command prints as one line.

    Its own type stays, so that a factory can still catch it.
    """
    if click.get_current_context(silent=True) is None:
        return error

    kind = type(error)
    both: type[VaultError] = type(
        kind.__name__, (kind, NoAppException), {"__module__": kind.__module__}
    )
    shown = both.__new__(both)
    shown.__dict__.update(error.__dict__, ctx=None, cmd=None)
    shown.args = error.args
    return shown
