"""What ``flask vault import`` does and says."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import pathlib
import sys
import typing as t

import click

from .console import polling_notice
from .console import say_error
from .console import say_short_history
from .console import table
from .entries import Reference
from .errors import CheckAndSetError
from .errors import VaultError
from .import_plan import assign
from .import_plan import Assigned
from .import_plan import read_dotenv
from .import_plan import Skipped
from .invocation import exit_code_of
from .invocation import worst
from .state import AppState
from .vault.documents import Document
from .vault.documents import Location

Action = t.Literal["new", "replace", "same", "kept"]

#: What is there by hand, or by another import, is not ours to overwrite.
_WRITTEN: t.Final[tuple[Action, ...]] = ("new", "replace")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    file: pathlib.Path
    only: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    dry_run: bool = False
    replace: bool = False
    yes: bool = False
    as_json: bool = False


@dataclasses.dataclass(frozen=True)
class Step:
    """A variable, and what is done with it."""

    item: Assigned
    action: Action


def run(state: AppState, wish: Wish) -> None:
    assigned, skipped = assign(
        read_dotenv(wish.file), state.entries, only=wish.only, leave=wish.leave
    )
    by_place: dict[Location, list[Assigned]] = {}

    for item in assigned:
        place = state.client.catalog.location(item.reference)
        by_place.setdefault(place, []).append(item)

    documents = {place: state.client.kv.newest(place) for place in by_place}
    steps = {
        place: [_step(item, documents[place], wish.replace) for item in items]
        for place, items in by_place.items()
    }
    to_do = {
        place: found
        for place, all_of_it in steps.items()
        if (found := [step for step in all_of_it if step.action in _WRITTEN])
    }
    every = [step for found in steps.values() for step in found]

    if not wish.as_json:
        _show(every, skipped, wish)

    failures: dict[Location, VaultError] = {}

    if to_do and not wish.dry_run:
        if not wish.yes and sys.stdin.isatty():
            fields = sum(map(len, to_do.values()))
            click.confirm(
                f"Write {_many(fields, 'field')} to {_many(len(to_do), 'document')}?",
                abort=True,
                err=wish.as_json,
            )

        failures = _write(state, to_do, documents, quiet=wish.as_json)

    if wish.as_json:
        failed = {s.item.name: str(failures[p]) for p in failures for s in to_do[p]}
        click.echo(json.dumps(_as_json(every, skipped, failed), indent=2))
    else:
        _show_entries(every)

        if to_do and not wish.dry_run and len(failures) < len(to_do):
            click.echo(polling_notice(state, to_do.keys() - failures.keys()))

    for place, error in failures.items():
        say_error(f"{place.path}: not written. {error}")

    raise click.exceptions.Exit(worst([0, *map(exit_code_of, failures.values())]))


def _step(item: Assigned, document: Document, replace: bool) -> Step:
    field = t.cast(str, item.reference.field)

    if field not in document.data:
        return Step(item, "new")

    if document.data[field] == item.value:
        return Step(item, "same")

    return Step(item, "replace" if replace else "kept")


def _write(
    state: AppState,
    to_do: cabc.Mapping[Location, list[Step]],
    documents: cabc.Mapping[Location, Document],
    quiet: bool,
) -> dict[Location, VaultError]:
    """One check-and-set write for each document, on the version that was looked at.

    :return: where it failed, and why.
    """
    failed: dict[Location, VaultError] = {}

    for place, steps in to_do.items():
        reference = dataclasses.replace(steps[0].item.reference, field=None)
        data = {t.cast(str, s.item.reference.field): s.item.value for s in steps}

        try:
            version = state.client.set_secret(
                str(reference), data, cas=documents[place].version
            )
        except CheckAndSetError as error:
            failed[place] = CheckAndSetError(
                "Somebody wrote it meanwhile: run the command again, and look at what"
                " it shows.",
                path=error.path,
            )
        except VaultError as error:
            failed[place] = error
        else:
            suffix = "" if version is None else f", version {version}"

            if not quiet:
                click.echo(f"{reference} is written{suffix}.")

    for place, problem in state.keep_histories(to_do.keys() - failed.keys()).items():
        say_short_history(place.path, problem)

    return failed


# --- what it says ------------------------------------------------------------------

_SAID: t.Final[dict[Action, str]] = {
    "new": "new",
    "replace": "replaces another value",
    "same": "is there already",
    "kept": "another value is there, which stays",
}


def _show(steps: list[Step], skipped: list[Skipped], wish: Wish) -> None:
    rows = [(s.item.name, str(s.item.reference), _SAID[s.action]) for s in steps]
    rows += [(s.name, "-", f"stays in the file: {s.reason}") for s in skipped]

    if rows:
        click.echo(table(("variable", "reference", "state"), rows))
    else:
        click.echo(f"There are no variables in {wish.file}.")

    if any(step.action == "kept" for step in steps):
        click.secho("With --replace the values of the file win.", err=True, fg="yellow")

    if wish.dry_run:
        click.echo("Nothing was written (--dry-run).")


def _show_entries(steps: list[Step]) -> None:
    """What to paste, for that which the app does not declare yet."""
    missing = _entries(steps)

    if not missing:
        return

    click.echo("\nAdd to the app's configuration:\n\nVAULT_SECRETS = {")

    for key, reference in missing.items():
        click.echo(f'    "{key}": "{reference}",')

    click.echo("}\n")


def _entries(steps: list[Step]) -> dict[str, Reference]:
    return {s.item.key: s.item.reference for s in steps if not s.item.declared}


def _as_json(
    steps: list[Step],
    skipped: list[Skipped],
    failed: cabc.Mapping[str, str],
) -> dict[str, t.Any]:
    return {
        "variables": [
            {
                "name": step.item.name,
                "key": step.item.key,
                "reference": str(step.item.reference),
                "action": step.action,
                "error": failed.get(step.item.name),
            }
            for step in steps
        ],
        "skipped": {found.name: found.reason for found in skipped},
        "vault_secrets": {key: str(ref) for key, ref in _entries(steps).items()},
    }


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
