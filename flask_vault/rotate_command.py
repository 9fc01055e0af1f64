"""What ``flask vault rotate`` does and says."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import json
import shlex
import sys
import typing as t

import click

from .catalog import Plan
from .catalog import StaticRole
from .console import polling_notice
from .console import say
from .console import say_error
from .console import say_short_history
from .errors import VaultError
from .invocation import exit_code_of
from .invocation import worst
from .reporter import Reporter
from .rotate_plan import nothing_to_do
from .rotate_plan import plan_for
from .rotate_plan import Wish
from .rotation.runner import Target
from .rotation.tasks import Result
from .state import AppState


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
    plan = plan_for(state, wish)

    if not plan:
        if wish.as_json:
            click.echo("[]")
        else:
            say(nothing_to_do(wish))

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
                say(_next(end, wish), err=end.error is not None)

        for place, problem in state.keep_histories(
            target.location for target in plan.targets
        ).items():
            say_short_history(place.path, problem)

        if any(end.error is None and end.version is not None for end in ends) or any(
            end.error is None and end.state == "done" for end in ends
        ):
            say(polling_notice(state))

    raise click.exceptions.Exit(worst([0, *(end.code for end in ends)]))


#: States of which a line was printed that needs no next command.
_SAID: t.Final = ("done", "aborted", "nothing open")


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
            say(_line(end))

            if wish.compromised:
                say(
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
            say(_line(end))

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

        try:
            results = operations.run(plan.tasks, seen=seen)
        except KeyboardInterrupt:
            reporter.close()
            say(
                "Interrupted. What was begun is kept. To go on: flask vault rotate"
                " --resume",
                err=True,
            )
            raise

    reporter.close()

    for result in results:
        if (rotated := result.rotated()) is not None:
            client.rotations.tell(rotated)

        end = _end(result)

        if end.error is None and not wish.as_json:
            say(_line(end))

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
