"""What ``flask vault status`` shows, once or again and again."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime
import json
import sys
import time
import typing as t
from types import MappingProxyType

import click

from .console import age
from .console import has_cursor
from .console import say
from .console import say_error
from .console import say_warning
from .console import table
from .errors import VaultError
from .health import age_of
from .health import ring_of
from .invocation import exit_code_of
from .resolve import Outcome
from .state import AppState

#: Seconds, where the app asks only when it is told to.
_INTERVAL: t.Final = 30.0

#: Cursor to the top, and what is below it away. The history of the terminal stays.
_CLEAR: t.Final = "\x1b[H\x1b[2J"


#: What is told of one config key.
Row = dict[str, t.Any]

#: Why a path cannot be read, by mount and path.
Errors = cabc.Mapping[str, VaultError]


def show(state: AppState, error: VaultError | None, as_json: bool) -> None:
    """Print where each config key comes from.

    :param error: why the app could not be loaded.
    """
    rows = _rows(state)

    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _print(state, rows)

    if error is not None:
        _say_why(rows, error)
        raise click.exceptions.Exit(exit_code_of(error))

    if (doubt := _doubt(state)) is not None:
        say_warning(doubt)


def watch(
    state: AppState, error: VaultError | None, interval: float | None
) -> t.NoReturn:
    """Print it at each interval, until Ctrl-C.

    On a terminal a look takes the place of the one before. Else it comes below it.

    :param error: why the app could not be loaded.
    :param interval: seconds; ``None`` is that of the app.
    """
    settings = state.settings
    own = _INTERVAL if settings.refresh_mode == "off" else settings.refresh_interval
    pause = own if interval is None else interval
    redraws = sys.stdout.isatty() and has_cursor()
    errors: Errors = {}

    # Ctrl-C is how this ends, so it is no failure.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            doubt = None if error or errors else _doubt(state)
            now = datetime.datetime.now().astimezone()
            click.echo(_CLEAR if redraws else "", nl=False)
            click.echo(f"{now:%Y-%m-%d %H:%M:%S%z}, every {pause:g} s. Ctrl-C ends it.")
            rows = _rows(state, errors)
            _print(state, rows)

            if error is not None:
                _say_why(rows, error)

            if doubt is not None:
                say_warning(doubt)

            if not redraws:
                click.echo()

            time.sleep(pause)
            error, errors = _look_again(state)

    click.echo()
    raise click.exceptions.Exit(0)


def _look_again(state: AppState) -> tuple[VaultError | None, Errors]:
    if state.loaded:
        return None, state.refresh().errors

    try:
        state.load()
    except VaultError as error:
        return error, {}

    return None, {}


def _rows(state: AppState, errors: Errors = MappingProxyType({})) -> list[Row]:
    enabled = state.settings.enabled
    rows = []

    for entry in state.entries:
        outcome = state.outcomes.get(entry.key, Outcome(entry, "unset"))
        place = state.client.catalog.location_of(entry).path if errors else ""
        error = errors.get(place, outcome.error)
        rows.append(
            {
                "key": entry.key,
                "reference": str(entry.reference),
                "source": outcome.source,
                "version": outcome.version,
                "age_seconds": age_of(outcome, state.client) if enabled else None,
                "error": str(error) if error else None,
                **ring_of(state, entry.key),
            }
        )

    return rows


def _print(state: AppState, rows: cabc.Sequence[Row]) -> None:
    if not rows:
        say("VAULT_SECRETS is empty: nothing comes from Vault.")
        return

    # As narrow as it can be.
    rings = any("keys" in row for row in rows)
    head = ("key", "reference", "source", "version", "age", "keys")
    cells = [
        (
            str(row["key"]),
            str(row["reference"]),
            str(row["source"]),
            str(row["version"] or "-"),
            age(row["age_seconds"]),
            _keys(row),
        )
        for row in rows
    ]
    width = len(head) if rings else len(head) - 1
    click.echo(table(head[:width], (row[:width] for row in cells)))

    for sentence, keys in _by_sentence(rows).items():
        say_warning(f"{', '.join(keys)}: {sentence}")

    if not state.settings.enabled:
        say_warning("VAULT_ENABLED is False: nothing comes from Vault.")


def _say_why(rows: cabc.Iterable[Row], error: VaultError) -> None:
    # The sentences below the table have told it already.
    if not any(row["error"] for row in rows):
        say_error(str(error))


def _doubt(state: AppState) -> str | None:
    """A standby that is cut off from its leader answers, too, with what it has."""
    if not state.settings.enabled:
        return None

    try:
        state.prove_fresh()
    except VaultError as error:
        return (
            f"What is shown may be old, since the active node does not answer: {error}"
        )

    return None


def _keys(row: Row) -> str:
    """A key ring for people: ``3 pending, 2 signing, 1 retired; changes in 80 s``."""
    keys = row.get("keys") or ()
    told = ", ".join(f"{key['version'] or ''} {key['state']}".strip() for key in keys)
    change = row.get("next_change_seconds")
    return told if change is None else f"{told}; changes in {age(change)}"


def _by_sentence(rows: cabc.Iterable[Row]) -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}

    for row in rows:
        if row["error"]:
            sentences.setdefault(row["error"], []).append(row["key"])

    return sentences
