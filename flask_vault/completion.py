"""What the Tab key offers for the arguments of ``flask vault``.

The app is made for its settings, and nobody is asked for anything.
"""

from __future__ import annotations

import contextlib
import typing as t

import click
from flask.cli import ScriptInfo

from .invocation import loading

if t.TYPE_CHECKING:
    from .state import AppState


def complete_key(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The config keys of ``VAULT_SECRETS``."""
    state = _state_of(context)
    keys = [] if state is None else [entry.key for entry in state.entries]
    return [key for key in keys if key.startswith(incomplete)]


def complete_rotatable(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The config keys that have ``rotate``."""
    state = _state_of(context)
    entries = () if state is None else state.entries
    keys = [entry.key for entry in entries if entry.secret.rotate is not None]
    return [key for key in keys if key.startswith(incomplete)]


def complete_backup(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The files in ``VAULT_BACKUP_DIR``, the newest first."""
    state = _state_of(context)
    folder = None if state is None else state.settings.backup_dir

    if folder is None:
        return []

    # Their names hold the time, after the name of what is in them.
    files = sorted(folder.glob("*.json"), key=lambda file: file.name.split("_")[-2:])
    return [file.name for file in reversed(files) if file.name.startswith(incomplete)]


def _state_of(context: click.Context) -> AppState | None:
    from .loading import Inspected

    info = context.ensure_object(ScriptInfo)

    # A line that is being typed is no place for an error of the app's.
    with contextlib.suppress(Exception), loading("inspect"):
        try:
            info.load_app()
        except Inspected as inspected:
            return inspected.state

    return None
