"""What ``flask vault rotate`` is asked for, and what it would do."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import functools
import json
import operator
import typing as t

import click

from .catalog import Plan
from .console import say
from .console import say_warning
from .console import table
from .errors import VaultError
from .rotation.journal import record_of
from .state import AppState
from .vault.access import Access
from .vault.documents import Location


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    #: Config keys, names or paths; empty for all.
    selected: tuple[str, ...] = ()
    due: bool = False
    #: Seconds for which a value must not have been changed.
    min_age: float | None = None
    resume: bool = False
    abort: bool = False
    wait: bool = True
    compromised: bool = False
    backup: bool = True
    yes: bool = False
    as_json: bool = False


def plan_for(state: AppState, wish: Wish) -> Plan:
    """What is to be rotated by what was asked for."""
    catalog, rotations = state.client.catalog, state.client.rotations
    plan = functools.reduce(
        operator.or_, (catalog.plan(name) for name in wish.selected or (None,))
    )

    # What lives in Vault only is never left open.
    if wish.resume or wish.abort:
        plan = Plan(tasks=plan.tasks)

    if wish.due:
        plan = rotations.due(plan)

    if wish.min_age is not None:
        plan = rotations.of_age(plan, wish.min_age)

    return plan


def nothing_to_do(wish: Wish) -> str:
    """Why an empty plan is empty."""
    if wish.resume or wish.abort:
        return "No rotation is open: there is nothing to do."

    if wish.due:
        return (
            "No value is older than the 'max_age' of its entry: there is nothing to do."
        )

    if wish.min_age is not None:
        return "Each value was changed lately: there is nothing to do."

    return "No entry of VAULT_SECRETS has 'rotate': there is nothing to do."


def dry_run(state: AppState, wish: Wish) -> None:
    """Show what would be done, why, in which steps, and what the token may not do."""
    plan = plan_for(state, wish)

    if not plan:
        if wish.as_json:
            click.echo("[]")
        else:
            say(nothing_to_do(wish))

        return

    rows = [*_planned(state, plan, wish)]

    if wish.as_json:
        click.echo(json.dumps(rows, indent=2))
        return

    click.echo(
        table(
            ("path", "fields", "what", "why", "steps"),
            (
                (
                    row["path"],
                    ", ".join(row["fields"]),
                    row["kind"],
                    row["why"],
                    ", ".join(row["steps"]),
                )
                for row in rows
            ),
        )
    )

    for row in rows:
        for missing in row["missing"]:
            say_warning(f"{row['path']}: missing {missing}")


def _planned(
    state: AppState, plan: Plan, wish: Wish
) -> cabc.Iterator[dict[str, t.Any]]:
    kv = state.client.kv
    why = "max_age" if wish.due else "asked for"
    window = state.settings.propagation_window
    backup = ("back up",) if wish.backup else ()

    def needed(location: Location) -> dict[str, set[str]]:
        mount = kv.mount_of(location)
        path = location.path[len(mount.name) + 1 :]
        data = "data/" if mount.version == 2 else ""
        wanted = {f"{mount.name}/{data}{path}": {"read", "update"}}

        if wish.compromised:
            wanted[f"{mount.name}/metadata/{path}"] = {"read"}
            wanted[f"{mount.name}/destroy/{path}"] = {"update"}

        return wanted

    def missing(wanted: Location | dict[str, set[str]]) -> list[str]:
        try:
            routes = needed(wanted) if isinstance(wanted, Location) else wanted
            has = Access(state.client.transport).capabilities(list(routes))
        except VaultError as error:
            return [f"an answer of Vault's: {error}"]

        return [
            f"'{', '.join(sorted(names - has[route]))}' on {route!r}"
            for route, names in routes.items()
            if names - has[route]
        ]

    for target in plan.targets:
        yield {
            "path": target.label,
            "fields": list(target.makers),
            "kind": "signing",
            "why": "compromised" if wish.compromised else why,
            "steps": [*backup, "write", *(["destroy"] if wish.compromised else [])],
            "missing": missing(target.location),
        }

    for role in plan.roles:
        route = role.location.path.replace("/static-creds/", "/rotate-role/", 1)
        yield {
            "path": role.label,
            "fields": ["password"],
            "kind": "database-static",
            "why": why,
            "steps": ["ask the engine"],
            "missing": missing({role.location.path: {"read"}, route: {"update"}}),
        }

    for task in plan.tasks:
        because = why

        try:
            record = record_of(kv.newest(task.location).data, task.field)
        except VaultError:
            record = None

        if record is not None:
            because = f"{record.state}, operation {record.operation}"

        pause = () if wish.compromised or not window else (f"wait {window:g} s",)
        yield {
            "path": task.label,
            "fields": [task.field],
            "kind": task.kind,
            "why": because,
            "steps": [
                *("prepare", *backup, *pause, "apply", "verify", "promote"),
                *(*pause, "revoke"),
            ],
            "missing": missing(task.location),
        }
