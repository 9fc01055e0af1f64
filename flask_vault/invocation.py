"""What this process was started for, as far as it decides how an app is loaded."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import contextvars
import os
import pathlib
import sys
import typing as t

import click
from flask.cli import run_command
from flask.helpers import get_debug_flag
from werkzeug.serving import is_running_from_reloader

from .errors import AlreadyRotatedError
from .errors import BackupError
from .errors import CheckAndSetError
from .errors import UnfinishedRotationError
from .errors import VaultConfigError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultPermissionError
from .errors import VaultUnavailableError

#: How a ``flask vault`` command wants an app: ``inspect`` needs its settings alone, and
#: must work before there is a Vault; ``tolerate`` loads it, and takes what it gets;
#: ``examine`` wants the app as it is, however wrong its settings are.
Mode = t.Literal["inspect", "tolerate", "examine"]

MODE: contextvars.ContextVar[Mode | None] = contextvars.ContextVar(
    "flask_vault_mode", default=None
)

#: Whether the command writes, and logs in with ``VAULT_ROTATE_AUTH``.
WRITES: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "flask_vault_writes", default=False
)

_EXIT_CODES: t.Final[tuple[tuple[type[VaultError], int], ...]] = (
    (VaultConfigError, 2),
    (AlreadyRotatedError, 3),
    (CheckAndSetError, 3),
    (VaultUnavailableError, 4),
    (UnfinishedRotationError, 4),
    (BackupError, 6),
    (VaultLoginError, 7),
    (VaultPermissionError, 7),
)


#: The worst first.
_WORST: t.Final = (5, 7, 6, 4, 2, 3, 0)


def worst(codes: cabc.Iterable[int]) -> int:
    """The exit code of a command that did several things."""
    return min(codes, key=_WORST.index)


def exit_code_of(error: VaultError) -> int:
    """The exit code of a command that ended with this error.

    2 usage or configuration, 3 somebody else was first, 4 temporary (a retry is safe),
    5 a human is needed, 6 no backup and so nothing was changed, 7 permission.
    """
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code

    return 5


@contextlib.contextmanager
def loading(mode: Mode, *, writes: bool = False) -> cabc.Iterator[None]:
    """Have apps that are made inside loaded as a ``flask vault`` command needs."""
    tokens = MODE.set(mode), WRITES.set(writes)

    try:
        yield
    finally:
        MODE.reset(tokens[0])
        WRITES.reset(tokens[1])


def will_not_use_it() -> bool:
    """Whether this process builds the app and will neither serve it nor run a command.

    It lists the commands for ``flask --help``, or is the parent of the process that the
    reloader of ``flask run`` starts.

    The process' own command line does not tell: a test may run a command in a process
    that was started as something else. Who called does.
    """
    if MODE.get() is not None:
        return False

    program = pathlib.Path(sys.argv[0]).name.replace("-", "_").replace(".", "_")

    # The shell's completion runs without a click context.
    if os.environ.get(f"_{program}_COMPLETE".upper()):
        return True

    context = click.get_current_context(silent=True)

    if context is None:
        return False

    # In a command's own callback the context is not a group's.
    if not isinstance(context.command, click.Group):
        return context.command is run_command and _reloads(context)

    frame = sys._getframe()

    while (caller := frame.f_back) is not None:
        frame = caller
        name = frame.f_code.co_name
        module = str(frame.f_globals.get("__name__"))

        if not module.startswith(("click.", "flask.")):
            continue

        # click makes the text of "flask --help", which lists the app's commands.
        if name in {"get_help", "format_help", "shell_complete"}:
            return True

        # click looks up the command of "flask db upgrade --help".
        if name == "resolve_command":
            arguments = list(frame.f_locals.get("args", ()))
            end = arguments.index("--") if "--" in arguments else len(arguments)
            return "--help" in arguments[:end]

    return False


def _reloads(context: click.Context) -> bool:
    """Whether "flask run" will leave the serving to a child."""
    reload = context.params.get("reload")
    wanted = get_debug_flag() if reload is None else bool(reload)
    return wanted and not is_running_from_reloader()


def for_cli(error: VaultError) -> VaultError:
    """The same error, which the ``flask`` command prints as one line.

    Its own type stays, so that a factory can still catch it.

    No ``NoAppException``: for that, ``flask`` goes on to say that there is no such
    command.
    """
    if click.get_current_context(silent=True) is None:
        return error

    kind = type(error)
    both: type[VaultError] = type(
        kind.__name__, (kind, click.ClickException), {"__module__": kind.__module__}
    )
    shown = both.__new__(both)
    shown.__dict__.update(error.__dict__, exit_code=exit_code_of(error))
    shown.__dict__.update(show_color=None)
    shown.args = error.args
    return shown
