"""What the ``flask vault`` commands share: the app, errors, sentences and tables."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import os
import sys
import traceback
import typing as t

import click
from flask.cli import ScriptInfo

from .durations import age as age
from .invocation import exit_code_of
from .invocation import loading
from .invocation import Mode
from .layout import lay_out
from .layout import plain
from .layout import wrap

if t.TYPE_CHECKING:
    from flask import Flask

    from .errors import VaultError
    from .state import AppState
    from .vault.documents import Location


#: Of a terminal that does not know.
_WIDTH: t.Final = 80


class Opened(t.NamedTuple):
    """An app as a command found it."""

    state: AppState
    #: Why it could not be loaded, if that was tried.
    error: VaultError | None


@contextlib.contextmanager
def opened_app(
    context: click.Context,
    mode: Mode,
    *,
    writes: bool = False,
    quiet: bool = False,
) -> cabc.Iterator[Opened]:
    """The app's state inside its context; a :exc:`VaultError` ends the command.

    :param mode: ``inspect`` stops the factory at ``init_app``, and asks Vault nothing.
        ``tolerate`` loads the app; when that fails, the state comes with the error.
    :param writes: log in with ``VAULT_ROTATE_AUTH``.
    :param quiet: the command says itself what the log would say of the loading.
    """
    from .errors import VaultError

    info = context.ensure_object(ScriptInfo)

    try:
        with loading(mode, writes=writes), _quiet(quiet):
            opened = _open(info)

        with opened.state.app.app_context():
            yield opened
    except VaultError as error:
        # An error of the factory's is one that click can show, and so is this.
        fail(error)


def _open(info: ScriptInfo) -> Opened:
    from .errors import VaultConfigError
    from .errors import VaultError
    from .loading import Inspected
    from .loading import MADE

    before = MADE.get()

    try:
        return Opened(_state_of(info.load_app()), None)
    except Inspected as inspected:
        return Opened(inspected.state, inspected.error)
    except (VaultError, click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        # By then the app may have its secrets, and the text may hold one.
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        failure = VaultConfigError(
            f"The app cannot be made: {type(error).__name__} at {where}. 'flask routes'"
            " shows the whole of it."
        )

    made = MADE.get()

    if made is None or made is before:
        raise failure

    return Opened(made, failure)


@contextlib.contextmanager
def _quiet(quiet: bool) -> cabc.Iterator[None]:
    logger = logging.getLogger("flask_vault")
    before = logger.disabled
    logger.disabled = quiet or before

    try:
        yield
    finally:
        logger.disabled = before


def _state_of(app: Flask) -> AppState:
    from .extension import state_of

    try:
        return state_of(app)
    except RuntimeError as error:
        failure = str(error)

    say_error(failure)
    raise click.exceptions.Exit(2)


def fail(error: VaultError) -> t.NoReturn:
    """End the command with an error's sentence and exit code."""
    say_error(str(error))
    raise click.exceptions.Exit(exit_code_of(error))


def say(text: str, *, err: bool = False, fg: str | None = None) -> None:
    """Print sentences. On a terminal they are broken between words."""
    width = width_of(sys.stderr if err else sys.stdout)
    said = text if width is None else wrap(text, width)
    click.echo(said if fg is None else click.style(said, fg=fg), err=err)


def say_error(text: str) -> None:
    """Print a line of an error to stderr."""
    say(f"Error: {text}", err=True, fg="red")


def say_warning(text: str) -> None:
    """Print to stderr what did not stop the command."""
    say(text, err=True, fg="yellow")


def table(
    headers: cabc.Sequence[str],
    rows: cabc.Iterable[cabc.Sequence[str]],
    *,
    whole: bool = False,
    show_header: bool = True,
) -> str:
    """Aligned columns under their headers.

    On a terminal they are folded to its width, and coloured where rich is installed.
    The text is the same without it.

    :param whole: the first column is not folded, as people copy what is in it.
    """
    width = width_of(sys.stdout)
    lines = lay_out(headers, rows, width, whole=whole, show_header=show_header)

    if width is not None and has_colours():
        try:
            from .colours import paint
        except ImportError:
            pass
        else:
            return paint(lines, width)

    return plain(lines)


def has_cursor() -> bool:
    """Whether a terminal does more than to print what comes."""
    return os.environ.get("TERM") not in {"dumb", "unknown"}


def has_colours() -> bool:
    """Whether a terminal may be sent colours, see https://no-color.org."""
    return has_cursor() and not os.environ.get("NO_COLOR")


def width_of(stream: t.TextIO) -> int | None:
    """The characters in a line of a terminal; ``None`` for what is none."""
    if not stream.isatty():
        return None

    columns = os.environ.get("COLUMNS", "")

    if columns.isdecimal() and int(columns):
        return int(columns)

    try:
        return os.get_terminal_size(stream.fileno()).columns or _WIDTH
    except (OSError, ValueError):
        return _WIDTH


def say_short_history(path: str, error: Exception) -> None:
    """Tell that a key ring's document keeps as few versions as it did."""
    say_warning(
        f"{path} keeps as many versions as before, which may be too few for its key"
        f" ring: {error}"
    )


def polling_notice(
    state: AppState, places: cabc.Container[Location] | None = None
) -> str:
    """How other processes learn of what this one wrote.

    :param places: where it wrote; ``None`` is everywhere.
    """
    return f"Other processes learn of it by polling. {refresh_notice(state, places)}"


def refresh_notice(
    state: AppState, places: cabc.Container[Location] | None = None
) -> str:
    """When the workers of an app ask Vault again, and what then.

    :param places: for which it is told; ``None`` is all.
    """
    settings = state.settings

    if settings.refresh_mode == "off":
        return (
            "VAULT_REFRESH_MODE is 'off': app.config changes when the app calls"
            " vault.refresh(), or starts anew."
        )

    interval = f"{settings.refresh_interval:g} s (VAULT_REFRESH_INTERVAL)"
    asks = f"Each worker asks every {interval}."

    rings = state.live.maker.entries

    if not any(places is None or place in places for place in rings):
        return asks

    window = age(round(settings.propagation_window))
    return f"{asks} A new key of a key ring signs {window} after it was written."
