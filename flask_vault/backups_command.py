"""``flask vault backups``: what to do with the files that rotations have made."""

from __future__ import annotations

import json
import sys
import typing as t

import click

from .console import opened_app
from .console import say
from .console import say_error
from .console import say_warning
from .console import table
from .invocation import exit_code_of
from .invocation import worst

if t.TYPE_CHECKING:
    import collections.abc as cabc

    from .rotation.backup import BackupInfo
    from .state import AppState

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")


@click.group("backups")
def backups() -> None:
    """List, verify and tidy the backups in VAULT_BACKUP_DIR.

    To bring one back: flask vault rotate --restore FILE.
    """


@backups.command("list")
@_as_json
@click.pass_context
def list_command(context: click.Context, as_json: bool) -> None:
    """List the backups, the newest first.

    Shows what the files say of themselves. 'verify' tells whether it is true.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        from .backup_command import list_backups

        list_backups(state, as_json)


@backups.command()
@_as_json
@click.pass_context
def verify(context: click.Context, as_json: bool) -> None:
    """Open each backup with each key that should open it.

    Exit codes: 0 all are good, 5 one is not, 4 or 7 the transit engine was not reached
    or denied it.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        store = state.client.backups
        store.sealer.require_keys()
        infos = store.list(verify=True, every_key=True)

        if as_json:
            click.echo(json.dumps([_verified(info) for info in infos], indent=2))
        elif not infos:
            say(f"There are no backups in {store.directory}.")
        else:
            rows = (
                (
                    info.name,
                    info.header.path if info.header and info.verified else "-",
                    ", ".join(info.opened_by) or "nothing",
                )
                for info in infos
            )
            good = sum(info.verified for info in infos)
            click.echo(table(("file", "path", "opened by"), rows, whole=True))
            say(f"{good} of {len(infos)} backups are good.")

        raise click.exceptions.Exit(_say_problems(infos))


def _verified(info: BackupInfo) -> dict[str, object]:
    header = info.header
    return {
        "file": info.name,
        "path": header.path if header else None,
        "fields": list(header.fields) if header else [],
        "version": header.from_version if header else None,
        "created": header.created_at.isoformat() if header else None,
        "good": info.verified,
        "opened_by": list(info.opened_by),
        "problem": info.problem,
    }


def _say_problems(infos: cabc.Sequence[BackupInfo]) -> int:
    """Say on stderr what is not good.

    :return: the exit code.
    """
    codes = [0]
    failures = {}

    for info in infos:
        if info.failure is not None:
            failures[str(info.failure)] = exit_code_of(info.failure)
        elif info.problem is not None:
            codes.append(5)
            say_error(f"{info.name} {info.problem}.")

    for sentence in failures:
        say_error(f"Not every key could be tried: {sentence}")

    return worst([*codes, *failures.values()])


@backups.command()
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="How many of each path stay.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
@click.pass_context
def prune(
    context: click.Context, keep: int, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove all but the newest N backups of each path.

    Only backups that can be opened are counted and removed. The newest one of each
    field stays, too, however many newer ones of other fields there are.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        from .rotation.upkeep import Upkeep

        upkeep = Upkeep(state.client.backups)
        plan = upkeep.plan(keep)
        count = f"{len(plan.removed)} of {len(plan.removed) + len(plan.kept)} backups"

        if not as_json and plan.removed:
            rows = (
                (
                    info.name,
                    info.header.path,
                    info.header.created_at.isoformat(timespec="seconds"),
                )
                for info in plan.removed
                if info.header is not None
            )
            click.echo(table(("file", "path", "created"), rows, whole=True))

        if not dry_run:
            if plan.removed and not yes:
                _ask(f"Remove {count}?")

            upkeep.prune(plan)

        if as_json:
            said = {
                "removed" if not dry_run else "would_remove": [
                    info.name for info in plan.removed
                ],
                "kept": [info.name for info in plan.kept],
            }
            click.echo(json.dumps(said, indent=2))
        else:
            say(f"{'Would remove' if dry_run else 'Removed'} {count}.")

        for info in plan.kept:
            if info.problem is not None:
                say_warning(f"{info.name} stays: it {info.problem}.")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody can be asked here: give --yes, or --dry-run.")

    click.confirm(question, abort=True, err=True)


@backups.command()
@_as_json
@click.pass_context
def rekey(context: click.Context, as_json: bool) -> None:
    """Seal each backup anew with the first key of VAULT_BACKUP_KEYS.

    And with the newest version of VAULT_BACKUP_TRANSIT_KEY, if that is set. Each file
    is replaced in one step; interrupted, the same command goes on.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        raise click.exceptions.Exit(_rekey(state, as_json))


def _rekey(state: AppState, as_json: bool) -> int:
    from .errors import VaultUnavailableError
    from .rotation.upkeep import Upkeep

    codes = [0]
    rows = []

    try:
        for file in Upkeep(state.client.backups).rekey():
            what = "sealed anew" if file.done else "has the newest keys already"
            rows.append({"file": file.name, "done": file.done, "problem": file.problem})

            if file.problem is not None:
                codes.append(5 if file.failure is None else exit_code_of(file.failure))
                say_error(f"{file.name} {file.problem}.")
            elif not as_json:
                say(f"{file.name}: {what}.")
    except VaultUnavailableError as error:
        codes.append(exit_code_of(error))
        say_error(str(error))
        say(
            "Running it again is safe, and goes on: flask vault backups rekey", err=True
        )

    code = worst(codes)

    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif code == 0:
        say(
            "No backup needs the other keys any more."
            if rows
            else f"There are no backups in {state.settings.backup_dir}."
        )

    return code
