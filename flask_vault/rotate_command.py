"""What ``flask vault rotate`` does and says."""

from __future__ import annotations

import json
import sys
import typing as t

import click

from .console import polling_notice
from .console import say_error
from .console import say_short_history
from .console import table
from .errors import VaultError
from .errors import VaultUnavailableError
from .invocation import exit_code_of
from .invocation import worst
from .rotation.runner import Target
from .state import AppState
from .vault.documents import Location


def rotate(
    state: AppState,
    selected: tuple[str | None, ...],
    *,
    dry_run: bool,
    backup: bool,
) -> None:
    targets: dict[Location, Target] = {}
    refused: dict[str, VaultError] = {}

    for name in selected:
        chosen, not_possible = state.client.catalog.targets(name)
        refused.update(not_possible)

        for target in chosen:
            makers = {**target.makers}

            if target.location in targets:
                makers.update(targets[target.location].makers)

            targets[target.location] = Target(target.location, target.label, makers)

    if not targets and not refused:
        click.echo("No entry of VAULT_SECRETS has 'rotate': there is nothing to do.")
        return

    if dry_run:
        rows = [(x.label, ", ".join(x.makers), "rotate") for x in targets.values()]
        rows += [(key, "-", "cannot yet, see below") for key in refused]
        click.echo(table(("path", "fields", "what"), rows))

        for sentence in refused.values():
            click.secho(str(sentence), err=True, fg="yellow")

        return

    codes = [0]
    rotated: list[Location] = []

    for target in targets.values():
        try:
            done = state.client.rotate(target, backup=backup)
        except VaultError as error:
            codes.append(exit_code_of(error))
            say_error(f"{target.label}: {error}")
            _say_next(target.label, error, selected)
        else:
            rotated.append(done.location)
            version = "" if done.version is None else f", version {done.version}"
            kept = f"backup {done.backup}" if done.backup else "no backup"
            click.echo(
                f"{done.label}: {', '.join(done.fields)} rotated{version}, {kept},"
                f" operation {done.operation}, done."
            )

    for place, problem in state.keep_histories(rotated).items():
        say_short_history(place.path, problem)

    for refusal in refused.values():
        codes.append(exit_code_of(refusal))
        say_error(str(refusal))

    if len(codes) <= len(targets) + len(refused):
        click.echo(polling_notice(state))

    raise click.exceptions.Exit(worst(codes))


def _say_next(label: str, error: VaultError, selected: tuple[str | None, ...]) -> None:
    code = exit_code_of(error)
    # As narrow as what was asked for: a path may have more fields that rotate.
    again = " ".join(f"--secret {label if s is None else s}" for s in selected)
    done = getattr(error, "maybe_done", False)

    if code == 4:
        click.echo(
            f"{label}: {'not known to be' if done else 'not'} rotated. Running it again"
            f" is safe: flask vault rotate {again}",
            err=True,
        )
    elif code == 3:
        click.echo(
            f"{label}: left as the other process made it. To look:"
            f" flask vault get {label}",
            err=True,
        )
    else:
        click.echo(
            f"{label}: not rotated. When that is mended: flask vault rotate {again}",
            err=True,
        )


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
