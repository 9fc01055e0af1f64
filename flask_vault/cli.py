"""The ``flask vault`` commands.

Every ``flask`` command in an environment imports this module, so it imports nothing
that is heavy; each command imports what it needs.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import typing as t

import click
from flask.cli import ScriptInfo

from .backups_command import backups
from .completion import complete_backup
from .completion import complete_key
from .completion import complete_rotatable
from .console import fail
from .console import has_colours
from .console import opened_app
from .console import polling_notice
from .console import say
from .console import say_error
from .console import say_short_history
from .console import say_warning
from .console import table
from .invocation import exit_code_of
from .invocation import Mode
from .invocation import worst

if t.TYPE_CHECKING:
    from .entries import Reference
    from .provisioning import Provision
    from .state import AppState

_MASK: t.Final = "********"


@click.group("vault")
@click.pass_context
def vault_group(context: click.Context) -> None:
    """Secrets in HashiCorp Vault or OpenBao: look, write, rotate, restore."""
    if not has_colours():
        context.color = False


@vault_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    metavar="N",
    help="Seconds between two looks of --watch; VAULT_REFRESH_INTERVAL if left out.",
)
@click.pass_context
def status(
    context: click.Context, as_json: bool, watch: bool, interval: float | None
) -> None:
    """Show where each config key comes from, its version and age.

    Asks Vault now. The values are not shown.
    """
    if watch and as_json:
        raise click.UsageError("--json does not go with --watch.")

    if interval is not None and not watch:
        raise click.UsageError("--interval goes with --watch.")

    with opened_app(context, "tolerate", quiet=True) as (state, error):
        from . import status_command

        if watch:
            status_command.watch(state, error, interval)
        else:
            status_command.show(state, error, as_json)


@vault_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def refresh(context: click.Context, as_json: bool) -> None:
    """Ask for every path as a worker does, and show what it would take over.

    The workers are not reached by it: each asks by itself.
    """
    with opened_app(context, "tolerate", quiet=True) as (state, error):
        from .console import refresh_notice

        if error is not None:
            raise error

        report = state.refresh()
        errors = {path: str(error) for path, error in report.errors.items()}

        if as_json:
            click.echo(json.dumps({"changed": report.changed, "errors": errors}))
        else:
            paths = len(state.live.places)
            good = paths - len(errors)
            say(f"{good} of {paths} paths can be read and are good.")
            say(refresh_notice(state))

        for path, sentence in errors.items():
            say_error(f"{path}: {sentence}")

        codes = [exit_code_of(error) for error in report.errors.values()]
        raise click.exceptions.Exit(worst([0, *codes]))


@vault_group.command()
@click.argument("ref", shell_complete=complete_key)
@click.option("--reveal", is_flag=True, help="Print the value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def get(context: click.Context, ref: str, reveal: bool, as_json: bool) -> None:
    """Read REF, a config key or a reference such as stripe#api_key.

    Shows that it is there, and which version it is. With --reveal it prints the value
    and nothing else. In JSON a value is null without --reveal.
    """
    with opened_app(context, "inspect") as (state, _):
        from .values import pick
        from .values import RESERVED

        reference, version = _reference(state, ref)
        location = state.client.catalog.location(reference, version)
        document = state.client.kv.read(location)

        if reference.field is None:
            fields = {k: v for k, v in document.data.items() if k not in RESERVED}
        else:
            value = pick(document.data, reference.field, document.path)
            fields = {reference.field: value}

        if as_json:
            facts = {
                "path": document.path,
                "version": document.version,
                "fields": fields if reveal else dict.fromkeys(fields),
            }
            click.echo(json.dumps(facts, indent=2))
            return

        if reveal:
            value = fields if reference.field is None else fields[reference.field]
            click.echo(value if isinstance(value, str) else json.dumps(value))
            return

        shown = "-" if document.version is None else str(document.version)
        click.echo(
            table(
                ("field", "version", "value"),
                ((name, shown, _MASK) for name in fields),
            )
        )


@vault_group.command("set")
@click.argument("ref", shell_complete=complete_key)
@click.option(
    "--cas",
    type=click.IntRange(min=0),
    help="Write only when this version is there; 0 for none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.argument("surplus", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.pass_context
def set_command(
    context: click.Context,
    ref: str,
    cas: int | None,
    as_json: bool,
    surplus: tuple[str, ...],
) -> None:
    """Write REF, a config key or a reference such as stripe#api_key.

    The value comes from a prompt, or from standard input, never from the command line,
    which other users of the host can see. A REF without a field takes a JSON object.
    """
    if surplus:
        # Not shown again: it is most likely the value.
        raise click.UsageError(
            "The value does not go on the command line, where others can see it: leave"
            " it out and type it at the prompt, or send it to standard input. What was"
            " typed is in the shell's history: take it for known."
        )

    with opened_app(context, "inspect", writes=True) as (state, _):
        reference, _ = _reference(state, ref)
        data = _read_value(reference)
        path = f"/{reference.path}" if reference.absolute else reference.path
        version = state.client.set_secret(path, data, cas=cas)
        places = [state.client.catalog.location(reference)]

        if as_json:
            facts = {"path": places[0].path, "fields": [*data], "version": version}
            click.echo(json.dumps(facts, indent=2))
        else:
            suffix = "" if version is None else f", version {version}"
            say(f"{reference} is written{suffix}.")
            say(polling_notice(state, places))

        for place, error in state.keep_histories(places).items():
            say_short_history(place.path, error)


def _read_value(reference: Reference) -> dict[str, t.Any]:
    stdin = sys.stdin

    if stdin.isatty():
        raw = click.prompt(
            f"Value of {reference}", hide_input=True, confirmation_prompt=True
        )
    else:
        try:
            raw = stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise click.UsageError(
                "The value is no text in UTF-8: encode it as base64, and give the entry"
                " 'cast': 'bytes'."
            ) from None

        raw = raw.removesuffix("\n").removesuffix("\r")

    if not raw:
        raise click.UsageError(
            "The value is empty: type it at the prompt, or send it to standard input."
        )

    if reference.field is not None:
        return {reference.field: raw}

    try:
        data = json.loads(raw)
    except ValueError:
        data = None

    if not isinstance(data, dict):
        raise click.UsageError(
            f"{str(reference)!r} names no field, so the input is a JSON object such as"
            ' {"api_key": "..."}; or name a field with \'#\'.'
        )

    return data


@vault_group.command("list")
@click.argument("path", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def list_command(context: click.Context, path: str, as_json: bool) -> None:
    """List the names below PATH; those of folders end with a slash."""
    with opened_app(context, "inspect") as (state, _):
        names = state.client.list_secrets(path)

        if as_json:
            click.echo(json.dumps(names, indent=2))
            return

        for name in names:
            click.echo(name)


@vault_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def init(context: click.Context, as_json: bool) -> None:
    """Create what VAULT_SECRETS needs and Vault does not have.

    The mount if the token may, documents, and a generated value for each entry with
    'rotate'. What exists stays as it is. Works before the app can start.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        from .provisioning import provision

        done = provision(state.client.kv, state.client.catalog, environ=os.environ)

        if as_json:
            click.echo(json.dumps([_provisioned(p) for p in done], indent=2))
        elif not done:
            say("VAULT_SECRETS is empty: there is nothing to create.")
        else:
            click.echo(
                table(
                    ("reference", "state", "keys"),
                    ((p.reference, p.action, ", ".join(p.keys)) for p in done),
                )
            )

            if any(p.action == "created" for p in done):
                say(polling_notice(state))

        for place, error in state.keep_histories(state.live.places).items():
            say_short_history(place.path, error)

        codes = [0]

        for found in done:
            if found.action == "missing":
                codes.append(5 if found.needed else 0)
                say_error(
                    f"{found.reference} has no value, and only you know it: run 'flask"
                    f" vault set {found.reference}'."
                )

        for denial in {p.error for p in done if p.error is not None}:
            codes.append(exit_code_of(denial))
            say_error(str(denial))

        raise click.exceptions.Exit(worst(codes))


def _provisioned(found: Provision) -> dict[str, t.Any]:
    return {
        "reference": found.reference,
        "state": found.action,
        "keys": list(found.keys),
        "error": None if found.error is None else str(found.error),
    }


@vault_group.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False), default=".env")
@click.option("--dry-run", is_flag=True, help="Show what would be written.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this variable.")
@click.option(
    "--except", "leave", multiple=True, metavar="NAME", help="Not this variable."
)
@click.option("--replace", is_flag=True, help="Overwrite fields that differ.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def import_command(context: click.Context, /, file: str, **options: t.Any) -> None:
    """Write the secrets of FILE, a .env file, to Vault.

    Shows which variable goes where, and never a value. What VAULT_SECRETS declares goes
    where that says, the rest to a document of its first word. Needs python-dotenv.
    """
    with opened_app(context, "inspect", writes=True) as (state, _):
        from .import_command import run
        from .import_command import Wish

        run(state, Wish(pathlib.Path(file), **options))


@vault_group.command()
@click.option(
    "--for",
    "role",
    type=click.Choice(("app", "rotator", "init")),
    default="app",
    show_default=True,
    help="Who is to have it.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("hcl", "terraform", "json")),
    default="hcl",
    show_default=True,
    help="How it is printed.",
)
@click.option("--apply", "name", metavar="NAME", help="Write it to Vault as NAME.")
@click.option(
    "--approle",
    metavar="NAME",
    help="Write it, and set up an AppRole with it; print a wrapped secret id.",
)
@click.option("--yes", is_flag=True, help="Do not ask before it is written.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def policy(
    context: click.Context,
    role: t.Literal["app", "rotator", "init"],
    form: t.Literal["hcl", "terraform", "json"],
    name: str | None,
    approle: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Print the least policy that VAULT_SECRETS needs, or write it to Vault.

    For the app itself, for who runs 'rotate' and 'rotate --restore', or for who runs
    'init'. Works before the app can start, and before it can log in.
    """
    with opened_app(context, "inspect") as (state, _):
        from . import policy_command

        wish = policy_command.Wish(role, form, name, approle, yes, as_json)
        policy_command.run(state, wish)


@vault_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look for what is wrong, from the config to the database.

    Each check passes, warns or fails, and says how to mend it. Works when the app
    cannot start. No value is shown.

    Exit codes: 0 all is well, 1 a check warns, 2 one fails.
    """
    from .doctor_command import examine

    examine(context.ensure_object(ScriptInfo), as_json=as_json)


vault_group.add_command(backups)


@vault_group.command("backup-key")
def backup_key() -> None:
    """Make a key for VAULT_BACKUP_KEYS and print it.

    Keep it outside of Vault: a backup must open when Vault is gone.
    """
    from .rotation.keys import new_key

    click.echo(new_key())


@vault_group.command()
@click.option("--all", "everything", is_flag=True, help="Rotate all that has 'rotate'.")
@click.option(
    "--secret",
    "selected",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_rotatable,
    help="A config key, a path, or an entry's name. May be repeated.",
)
@click.option("--due", is_flag=True, help="Rotate what is older than its 'max_age'.")
@click.option(
    "--min-age",
    metavar="AGE",
    help="Leave alone what was changed since: seconds, or 90s, 15m, 12h, 30d.",
)
@click.option("--resume", is_flag=True, help="Only finish what is open.")
@click.option("--abort", is_flag=True, help="Give up what is open, if it is harmless.")
@click.option("--no-wait", is_flag=True, help="End where a wait begins.")
@click.option(
    "--compromised",
    is_flag=True,
    help="The old value is known to others: wait for nobody, and have it refused.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--no-backup", is_flag=True, help="Do not back up the old values.")
@click.option("--list-backups", is_flag=True, help="List the backups and end.")
@click.option(
    "--restore",
    metavar="FILE",
    shell_complete=complete_backup,
    help="Bring back the values of a backup.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --restore and --abort.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def rotate(
    context: click.Context,
    everything: bool,
    selected: tuple[str, ...],
    due: bool,
    min_age: str | None,
    resume: bool,
    abort: bool,
    no_wait: bool,
    compromised: bool,
    dry_run: bool,
    no_backup: bool,
    list_backups: bool,
    restore: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Replace secrets by new ones, after an encrypted backup of the old.

    Interrupted at any point, the same command goes on. Exit codes: 0 done, 2 usage or
    configuration, 3 somebody else was first, 4 temporary (run it again), 5 a person is
    needed, 6 no backup and so nothing was changed, 7 permission.
    """
    chosen = everything + bool(selected) + due

    # What is open is few, so all of it is meant.
    if chosen == 0 and resume + abort == 1:
        chosen = 1

    if chosen + list_backups + bool(restore) != 1 or (resume and abort):
        raise click.UsageError(
            "Give one of --all, --secret NAME, --due, --resume, --abort, --list-backups"
            " and --restore FILE. --resume and --abort may go with --secret."
        )

    if restore is not None and restore.startswith("-"):
        raise click.UsageError("--restore needs a FILE.")

    if restore and no_backup:
        raise click.UsageError("--no-backup does not go with --restore.")

    asks_nothing = list_backups or dry_run

    mode: Mode = "inspect" if asks_nothing else "tolerate"

    with opened_app(context, mode, writes=True) as opened:
        from . import backup_command
        from . import rotate_command
        from . import rotate_plan
        from .entries import duration

        state, error = opened

        if error is not None:
            say_warning(
                "The app did not load, so its own receivers of secret_rotated are not"
                f" called: {error}"
            )

        if list_backups:
            backup_command.list_backups(state, as_json)
            return

        if restore is not None:
            backup_command.restore(
                state, restore, dry_run=dry_run, yes=yes, as_json=as_json
            )
            return

        wish = rotate_plan.Wish(
            selected=selected,
            due=due,
            min_age=None if min_age is None else duration(min_age, "--min-age"),
            resume=resume,
            abort=abort,
            wait=not no_wait,
            compromised=compromised,
            backup=not no_backup,
            yes=yes,
            as_json=as_json,
        )

        if dry_run:
            rotate_plan.dry_run(state, wish)
        else:
            rotate_command.rotate(state, wish)


@vault_group.command()
@click.option(
    "--secret",
    "selected",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_rotatable,
    help="Only these.",
)
@click.option("--since", metavar="AGE", help="Only since: 12h, 7d, or seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without prose.")
@click.pass_context
def audit(
    context: click.Context,
    selected: tuple[str, ...],
    since: str | None,
    as_json: bool,
) -> None:
    """Show who rotated what, from VAULT_AUDIT_LOG."""
    with opened_app(context, "inspect") as (state, _):
        from . import audit_command

        audit_command.show(state, selected, since, as_json)


@vault_group.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--seed",
    type=click.File("r", encoding="utf-8"),
    help='A JSON file {"path": {"field": value}} with values to begin with.',
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def dev(
    context: click.Context, seed: t.TextIO | None, command: tuple[str, ...]
) -> None:
    """Run the app, or COMMAND, against a new server that lives as long as it does.

    Starts OpenBao or Vault in development mode, creates what VAULT_SECRETS needs,
    makes an AppRole with the least policy for the app, and runs 'flask run' or the
    COMMAND after '--' with the address and credentials in its environment.
    """
    from .dev import run_dev
    from .errors import VaultError

    try:
        seeds = None if seed is None else json.load(seed)
    except ValueError:
        raise click.UsageError("The --seed file is not JSON.") from None

    try:
        code = run_dev(context.ensure_object(ScriptInfo), command, seeds)
    except VaultError as error:
        fail(error)

    raise click.exceptions.Exit(code)


def _reference(state: AppState, ref: str) -> tuple[Reference, int | None]:
    """What a person means, and the version that its entry pins."""
    from .entries import Reference
    from .errors import VaultConfigError

    for entry in state.entries:
        if ref in {entry.key, entry.secret.name}:
            return entry.reference, entry.secret.version

    # Most likely a key that was mistyped: as a path it would be a new document.
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", ref):
        keys = ", ".join(entry.key for entry in state.entries) or "none"
        raise VaultConfigError(
            f"{ref!r} is no key of VAULT_SECRETS; there are: {keys}. A path in capital"
            f" letters is written with its mount, as '/{state.settings.mount}/{ref}'."
        )

    return Reference.parse(ref), None
