"""What the commands about backups do and say."""

from __future__ import annotations

import json
import sys
import typing as t

import click

from .console import polling_notice
from .console import say
from .console import say_error
from .console import table
from .errors import VaultUnavailableError
from .invocation import exit_code_of
from .rotation.backup import BackupInfo
from .rotation.envelope import BackupHeader
from .state import AppState


def list_backups(state: AppState, as_json: bool) -> None:
    infos = state.client.backups.list()
    rows = [
        {
            "file": info.name,
            "path": info.header.path if info.header else None,
            "fields": list(info.header.fields) if info.header else [],
            "version": info.header.from_version if info.header else None,
            "created": info.header.created_at.isoformat() if info.header else None,
            "problem": info.problem,
        }
        for info in infos
    ]

    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return

    if not rows:
        say(f"There are no backups in {state.settings.backup_dir}.")
        return

    click.echo(
        table(
            ("file", "path", "fields", "version", "created"),
            (
                (
                    info.name,
                    info.header.path if info.header else "-",
                    ", ".join(info.header.fields if info.header else ()) or "-",
                    str((info.header and info.header.from_version) or "-"),
                    info.problem or _created(info),
                )
                for info in infos
            ),
            whole=True,
        )
    )


def _created(info: BackupInfo) -> str:
    # The microseconds are for programs.
    header = info.header
    return "-" if header is None else header.created_at.isoformat(timespec="seconds")


def restore(
    state: AppState, file: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    backup = state.client.backups.read(file)
    header = backup.header
    what = (
        f"{header.path}: {', '.join(header.fields)} as of version"
        f" {header.from_version or '-'}, from {file}"
    )

    if dry_run:
        if as_json:
            click.echo(json.dumps({"would_restore": _of(header, file)}, indent=2))
        else:
            say(f"Would bring back {what}.")

        return

    if not yes and sys.stdin.isatty():
        click.confirm(f"Bring back {what}?", abort=True, err=as_json)

    try:
        done = state.client.restore_secret(file)
    except VaultUnavailableError as error:
        say_error(str(error))
        say(
            f"{header.path}: not known to be restored. Running it again is safe: flask"
            f" vault rotate --restore {file}",
            err=True,
        )
        raise click.exceptions.Exit(exit_code_of(error)) from None

    if as_json:
        facts = {
            **_of(header, file),
            "operation": done.operation,
            "version": done.version,
            "backup": done.backup,
        }
        click.echo(json.dumps({"restored": facts}, indent=2))
        return

    version = "" if done.version is None else f", now version {done.version}"
    say(
        f"{done.label}: {', '.join(done.fields)} restored{version}, what was there is"
        f" in the backup {done.backup}, operation {done.operation}, done."
    )
    say(polling_notice(state))


def _of(header: BackupHeader, file: str) -> dict[str, t.Any]:
    return {
        "file": file,
        "path": header.path,
        "fields": list(header.fields),
        "from_version": header.from_version,
    }
