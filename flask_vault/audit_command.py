"""What ``flask vault audit`` shows."""

from __future__ import annotations

import collections.abc as cabc
import datetime
import json
import typing as t

import click

from .console import say
from .console import table
from .entries import duration
from .errors import VaultConfigError
from .rotation.audit import read
from .state import AppState


def show(
    state: AppState, selected: tuple[str, ...], since: str | None, as_json: bool
) -> None:
    file = state.settings.audit_log

    if file is None:
        raise VaultConfigError(
            "VAULT_AUDIT_LOG is unset, so there is no file to read: the lines go to the"
            " logger 'flask_vault.audit' alone."
        )

    oldest = None

    if since is not None:
        # The lines have Vault's time, which this command does not ask for.
        now = datetime.datetime.now(datetime.timezone.utc)
        oldest = now - datetime.timedelta(seconds=duration(since, "--since"))

    wanted = _wanted(state, selected)

    try:
        lines = read(file, match=wanted, since=oldest)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise VaultConfigError(
            f"VAULT_AUDIT_LOG, {str(file)!r}, cannot be read: {error.strerror}."
        ) from None

    if as_json:
        click.echo(json.dumps(lines, indent=2))
    elif not lines:
        say(f"There is nothing in {file} that matches.")
    else:
        click.echo(
            table(
                (
                    "secret",
                    "time (UTC)",
                    "state",
                    "outcome",
                    "version",
                    "operation",
                    "by",
                ),
                (_row(line) for line in lines),
                whole=True,
            )
        )


def _wanted(
    state: AppState, selected: tuple[str, ...]
) -> cabc.Callable[[cabc.Mapping[str, t.Any]], bool]:
    if not selected:
        return lambda line: True

    fields: set[tuple[str, str]] = set()

    for name in selected:
        plan = state.client.catalog.plan(name)
        fields |= {(x.location.path, f) for x in plan.targets for f in x.makers}
        fields |= {(x.location.path, x.field) for x in plan.tasks}

    return lambda line: any(
        (line["path"], name) in fields for name in line["field"].split(", ")
    )


def _row(line: cabc.Mapping[str, t.Any]) -> tuple[str, ...]:
    actor = line.get("actor") or {}
    return (
        f"{line['path']}#{line['field']}",
        str(line["time"])[:19].replace("T", " "),
        str(line["state"]),
        str(line["outcome"]),
        str(line.get("to_version") or "-"),
        str(line.get("operation") or "-")[:8],
        f"{actor.get('user', '?')}@{actor.get('host', '?')}",
    )
