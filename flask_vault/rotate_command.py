"""What ``flask vault rotate`` does and says."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import functools
import json
import operator
import shlex
import sys
import typing as t

import click

from .catalog import Plan
from .catalog import StaticRole
from .console import polling_notice
from .console import say_error
from .console import say_short_history
from .console import table
from .errors import VaultError
from .errors import VaultUnavailableError
from .invocation import exit_code_of
from .invocation import worst
from .rotation.runner import Target
from .rotation.tasks import Progress
from .rotation.tasks import Result
from .rotation.tasks import Task
from .state import AppState

_BAR: t.Final = 24


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


@dataclasses.dataclass(frozen=True)
class End:
    """How the rotation of a document, or of a field of one, ended."""

    label: str
    fields: tuple[str, ...]
    operation: str | None
    state: str
    error: VaultError | None = None
    version: int | None = None
    backup: str | None = None
    joined: bool = False

    @property
    def code(self) -> int:
        return 0 if self.error is None else exit_code_of(self.error)


def rotate(state: AppState, wish: Wish) -> None:
    plan = _plan(state, wish)

    if not plan:
        if wish.as_json:
            click.echo("[]")
        else:
            click.echo(_nothing(wish))

        return

    if wish.abort and not wish.yes and sys.stdin.isatty():
        names = ", ".join(task.name for task in plan.tasks)
        click.confirm(f"Give up the open rotations of {names}?", abort=True)

    reporter = Reporter(quiet=wish.as_json)
    ends = [
        *_signing(state, plan.targets, wish),
        *_roles(state, plan.roles, wish),
        *_others(state, plan, wish, reporter),
    ]
    reporter.close()

    if wish.as_json:
        click.echo(json.dumps([_as_json(end, wish) for end in ends], indent=2))
    else:
        for end in ends:
            if end.error is not None:
                say_error(
                    str(end.error)
                    if str(end.error).startswith(end.label)
                    else f"{end.label}: {end.error}"
                )

        for end in ends:
            if end.error is not None or end.state not in _SAID:
                click.echo(_next(end, wish), err=end.error is not None)

        for place, problem in state.keep_histories(
            target.location for target in plan.targets
        ).items():
            say_short_history(place.path, problem)

        if any(end.error is None and end.version is not None for end in ends) or any(
            end.error is None and end.state == "done" for end in ends
        ):
            click.echo(polling_notice(state))

    raise click.exceptions.Exit(worst([0, *(end.code for end in ends)]))


#: States of which a line was printed that needs no next command.
_SAID: t.Final = ("done", "aborted", "nothing open")


def _plan(state: AppState, wish: Wish) -> Plan:
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


def _nothing(wish: Wish) -> str:
    if wish.resume or wish.abort:
        return "No rotation is open: there is nothing to do."

    if wish.due:
        return (
            "No value is older than the 'max_age' of its entry: there is nothing to do."
        )

    if wish.min_age is not None:
        return "Each value was changed lately: there is nothing to do."

    return "No entry of VAULT_SECRETS has 'rotate': there is nothing to do."


def _signing(
    state: AppState, targets: cabc.Iterable[Target], wish: Wish
) -> cabc.Iterator[End]:
    for target in targets:
        fields = tuple(target.makers)

        try:
            done = state.client.rotations.rotate(
                target,
                backup=wish.backup,
                # What the app was loaded with a moment ago spares a request.
                seen=state.client.held(target.location),
                compromised=wish.compromised,
            )
        except VaultError as error:
            yield End(target.label, fields, None, "unchanged", error)
            continue

        end = End(
            done.label, fields, done.operation, "done", None, done.version, done.backup
        )

        if not wish.as_json:
            click.echo(_line(end))

            if wish.compromised:
                click.echo(
                    f"{done.label}: the older versions are destroyed. Nobody accepts"
                    " their values any more, those of its other fields neither."
                )

        yield end


def _roles(
    state: AppState, roles: cabc.Iterable[StaticRole], wish: Wish
) -> cabc.Iterator[End]:
    for role in roles:
        try:
            done = state.client.rotations.rotate_role(role)
        except VaultError as error:
            yield End(role.label, ("password",), None, "unchanged", error)
            continue

        end = End(role.label, done.fields, done.operation, "done")

        if not wish.as_json:
            click.echo(_line(end))

        yield end


def _others(
    state: AppState, plan: Plan, wish: Wish, reporter: Reporter
) -> cabc.Iterator[End]:
    if not plan.tasks:
        return

    client = state.client
    rotations = client.rotations
    rules = dataclasses.replace(
        rotations.rules,
        wait=wish.wait,
        begin=not wish.resume,
        compromised=wish.compromised,
    )

    try:
        operations = rotations.operations(rules, backup=wish.backup, report=reporter)
    except VaultError as error:
        for task in plan.tasks:
            yield End(task.label, (task.field,), None, "unchanged", error)

        return

    for place in {task.location for task in plan.tasks}:
        # A rotation writes five versions; a mount keeps ten unless told otherwise.
        with contextlib.suppress(VaultError):
            client.keep_history(place)

    if wish.abort:
        results = [operations.abort(task, force=wish.yes) for task in plan.tasks]
    else:
        seen = {
            task.location: document
            for task in plan.tasks
            if (document := client.held(task.location)) is not None
        }
        results = operations.run(plan.tasks, seen=seen)

    reporter.close()

    for result in results:
        if (rotated := result.rotated()) is not None:
            client.rotations.tell(rotated)

        end = _end(result)

        if end.error is None and not wish.as_json:
            click.echo(_line(end))

        yield end


def _end(result: Result) -> End:
    task = result.task
    state = "unchanged" if result.operation is None else result.state

    if result.operation is None and result.error is None:
        state = "nothing open"

    return End(
        task.label,
        (task.field,),
        result.operation,
        state,
        result.error,
        None if result.document is None else result.document.version,
        result.backup,
        result.joined,
    )


def _line(end: End) -> str:
    fields = ", ".join(end.fields)

    if end.state == "nothing open":
        return f"{end.label}: no rotation of {fields} is open."

    if end.state == "aborted":
        return (
            f"{end.label}: the rotation of {fields} is given up, the old value stays,"
            f" operation {end.operation}, done."
        )

    version = "" if end.version is None else f", version {end.version}"

    if end.state != "done":
        return (
            f"{end.label}: {fields} is being rotated{version}, operation"
            f" {end.operation}, {end.state}."
        )

    kept = f"backup {end.backup}" if end.backup else "no backup"

    if end.joined and not end.backup:
        kept = "begun by another run"

    return (
        f"{end.label}: {fields} rotated{version}, {kept}, operation {end.operation},"
        " done."
    )


def _next(end: End, wish: Wish) -> str:
    """What is left, and the exact next command."""
    # As narrow as what was asked for: a path may have more fields that rotate.
    named = wish.selected or (end.label,)
    again = " ".join(f"--secret {shlex.quote(name)}" for name in named)
    flags = "".join(
        f" {flag}"
        for flag, given in (
            ("--no-backup", not wish.backup),
            ("--compromised", wish.compromised),
        )
        if given
    )
    command = f"flask vault rotate {again}{flags}"
    error = end.error

    if end.operation is not None and end.state not in ("unchanged", "done"):
        if end.state == "aborted":
            return (
                f"{end.label}: operation {end.operation}, given up; the old value is in"
                f" use. When that is mended: {command}"
            )

        when = "When that is mended: " if end.code not in (0, 4) else "To go on: "
        return (
            f"{end.label}: operation {end.operation}, state {end.state}."
            f" {when}{command} --resume"
        )

    if end.code == 4:
        done = getattr(error, "maybe_done", False)
        return (
            f"{end.label}: {'not known to be' if done else 'not'} rotated. Running it"
            f" again is safe: {command}"
        )

    if end.code == 3:
        return (
            f"{end.label}: left as the other process made it. To look: flask vault get"
            f" {shlex.quote(end.label)}"
        )

    return f"{end.label}: not rotated. When that is mended: {command}"


def _as_json(end: End, wish: Wish) -> dict[str, t.Any]:
    open_still = end.error is not None or end.state not in _SAID
    return {
        "path": end.label,
        "fields": list(end.fields),
        "operation": end.operation,
        "state": end.state,
        "version": end.version,
        "backup": end.backup,
        "joined": end.joined,
        "code": end.code,
        "error": None if end.error is None else str(end.error),
        "next": _next(end, wish).rpartition(": ")[2] if open_still else None,
    }


class Reporter:
    """Shows steps and waits: a bar on a terminal, else a line for each step.

    :param quiet: shows nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = sys.stderr.isatty()
        self._drawn = False
        self._waits: dict[Task, float] = {}

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return

        task, left = progress.task, progress.remaining

        if left is None:
            self.close()
            self._waits.pop(task, None)
            operation = (progress.operation or "")[:8]
            click.echo(f"{task.name}: {progress.step} ({operation})", err=True)
            return

        longest = self._waits.setdefault(task, max(left, 0.001))

        if self._bar:
            done = round(_BAR * (1 - max(0.0, min(1.0, left / longest))))
            bar = "#" * done + "-" * (_BAR - done)
            click.echo(
                f"\r{task.name}: waiting [{bar}] {max(0.0, left):4.0f} s ",
                err=True,
                nl=False,
            )
            self._drawn = True
        elif left >= longest:
            click.echo(f"{task.name}: waiting {left:.0f} s for the workers", err=True)

    def close(self) -> None:
        """End the line of a bar."""
        if self._drawn:
            click.echo("", err=True)
            self._drawn = False


def dry_run(state: AppState, wish: Wish) -> None:
    """Show what would be done, why, in which steps, and what the token may not do."""
    plan = _plan(state, wish)

    if not plan:
        click.echo("[]" if wish.as_json else _nothing(wish))
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
            click.secho(f"{row['path']}: missing {missing}", err=True, fg="yellow")


def _planned(
    state: AppState, plan: Plan, wish: Wish
) -> cabc.Iterator[dict[str, t.Any]]:
    from .rotation.journal import record_of
    from .vault.documents import Location

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
            has = kv.capabilities(list(routes))
        except VaultError as error:
            return [f"an answer of Vault's: {error}"]

        return [
            f"'{', '.join(sorted(names - has[route]))}' on {route!r}"
            for route, names in routes.items()
            if "root" not in has[route] and names - has[route]
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
