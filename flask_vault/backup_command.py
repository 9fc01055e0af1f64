"""What the commands about backups do and say."""

from __future__ import annotations

import json
import sys
import typing as t

import click

from .console import polling_notice
from .console import say_error
from .console import table
from .errors import VaultUnavailableError
from .invocation import exit_code_of
from .state import AppState


def list_backups(state: AppState, as_json: bool) -> None:
    rows = [
        {
            "file": info.name,
            "path": info.header.path if info.header else None,
            "fields": list(info.header.fields) if info.header else [],
            "version": info.header.from_version if info.header else None,
            "created": info.header.created_at.isoformat() if info.header else None,
            "problem": info.problem,
        }
        for info in state.client.backups.list()
    ]

    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return

    if not rows:
        click.echo(f"There are no backups in {state.settings.backup_dir}.")
        return

    click.echo(
        table(
            ("file", "path", "fields", "version", "created"),
            (
                (
                    str(row["file"]),
                    str(row["path"] or "-"),
                    ", ".join(t.cast("list[str]", row["fields"])) or "-",
                    str(row["version"] or "-"),
                    str(row["problem"] or row["created"]),
                )
                for row in rows
            ),
        )
    )


def restore(state: AppState, file: str, *, dry_run: bool, yes: bool) -> None:
    backup = state.client.backups.read(file)
    header = backup.header
    what = (
        f"{header.path}: {', '.join(header.fields)} as of version"
        f" {header.from_version or '-'}, from {file}"
    )

    if dry_run:
        click.echo(f"Would bring back {what}.")
        return

    if not yes and sys.stdin.isatty():
        click.confirm(f"Bring back {what}?", abort=True)

    try:
        done = state.client.restore_secret(file)
    except VaultUnavailableError as error:
        say_error(str(error))
        click.echo(
            f"{header.path}: not known to be restored. Running it again is safe: flask"
            f" vault rotate --restore {file}",
            err=True,
        )
        raise click.exceptions.Exit(exit_code_of(error)) from None

    version = "" if done.version is None else f", now version {done.version}"
    click.echo(
        f"{done.label}: {', '.join(done.fields)} restored{version}, what was there is"
        f" in the backup {done.backup}, operation {done.operation}, done."
    )
    click.echo(polling_notice(state))
