"""What ``flask vault policy`` does and says."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

import click

from .console import age
from .console import say
from .console import say_warning
from .errors import VaultConfigError
from .errors import VaultError
from .errors import VaultPermissionError
from .policy import Role
from .policy import Rule
from .policy import rules
from .policy import to_hcl
from .policy import to_json
from .policy import to_terraform
from .state import AppState
from .vault.access import Access
from .vault.access import Wrapped
from .vault.documents import Location
from .vault.documents import Mount

Format = t.Literal["hcl", "terraform", "json"]

#: Of the AppRole method.
_MOUNT: t.Final = "approle"

#: Seconds that the wrapping of a secret id lives: long enough for a job to begin.
_WRAP_TTL: t.Final = 300

#: What a job of some minutes needs. It logs in once.
_JOB: t.Final = {
    "token_ttl": 1800,
    "token_max_ttl": 3600,
    "secret_id_ttl": 900,
    "secret_id_num_uses": 1,
}

#: By role, in seconds. An app renews its token for as long as it runs. Within the first
#: day it can log in anew; after that it is started with a new secret id.
_OPTIONS: t.Final[dict[Role, dict[str, int]]] = {
    "app": {"token_period": 86_400, "secret_id_ttl": 86_400, "secret_id_num_uses": 0},
    "rotator": _JOB,
    "init": _JOB,
}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What was asked for on the command line.

    :param policy: the name under which to write it.
    :param approle: the name of the role to set up.
    """

    role: Role
    form: Format
    policy: str | None
    approle: str | None
    yes: bool
    as_json: bool


@dataclasses.dataclass(frozen=True)
class _Made:
    """A role that was set up."""

    name: str
    role_id: str
    wrapped: Wrapped


def run(state: AppState, wish: Wish) -> None:
    _check_name("--apply", wish.policy)
    _check_name("--approle", wish.approle)
    found = _rules(state, wish.role)
    text = to_hcl(wish.role, state.app.name, found)
    # A role without a policy would be of no use.
    name = wish.policy or wish.approle
    made: _Made | None = None

    if name is not None:
        if not found:
            raise VaultConfigError(
                f"VAULT_SECRETS has nothing for which a policy for {wish.role!r} is"
                " needed: nothing was written."
            )

        _ = state.client.kv  # Refuses when VAULT_ENABLED is false.
        access = Access(state.client.transport)
        replaces = access.policy(name)

        if not wish.yes:
            _ask(wish, name, text, replaces)

        try:
            access.write_policy(name, text)

            if wish.approle is not None:
                made = _set_up(access, wish.role, wish.approle, name)
        except VaultPermissionError as error:
            raise VaultPermissionError(
                f"{error} Set VAULT_TOKEN to one that may, or hand the output of 'flask"
                f" vault policy --for {wish.role}' to somebody who does.",
                status=error.status,
                path=error.path,
                errors=error.errors,
            ) from None

    if wish.as_json:
        click.echo(json.dumps(_report(wish, found, name, made), indent=2))
    elif name is None:
        _show(state, wish, found, text)
    else:
        say(f"The policy {name!r} is written.")

        if made is not None:
            _tell_role(wish.role, made)


def _rules(state: AppState, role: Role) -> list[Rule]:
    settings = state.settings
    silent: list[VaultError] = []
    unknown: dict[str, None] = {}

    def mount_of(location: Location) -> Mount:
        if not silent:
            try:
                mount = state.client.kv.mount_of(location)

                if mount.assumed:
                    unknown[mount.name] = None

                return mount
            except VaultError as error:
                # Of the mount itself, then, and not of the way there: before there is a
                # way to log in, somebody has to write the first policy.
                if isinstance(error, VaultConfigError) and error.path is not None:
                    raise

                silent.append(error)

        name = location.mount or location.path.partition("/")[0]
        return Mount(name, settings.kv_version or 2, assumed=True)

    found = rules(role, state.client.catalog, mount_of)

    for problem in silent:
        say_warning(
            "Vault was not asked which engine the mounts have, and KV version"
            f" {settings.kv_version or 2} is assumed (VAULT_KV_VERSION): {problem}",
        )

    for name in unknown:
        may = ", and 'init' may make it" if role == "init" else ""
        say_warning(
            f"Vault does not say what is mounted at {name!r}, either because there is"
            " nothing or because the token has no right there: KV version 2 is assumed"
            f" (VAULT_KV_VERSION){may}.",
        )

    return found


def _ask(wish: Wish, name: str, text: str, replaces: str | None) -> None:
    click.echo(text, err=wish.as_json)

    if replaces is not None and replaces != text:
        question = f"Vault has another policy {name!r}. Replace it by this one?"
    else:
        question = f"Write this as the policy {name!r}?"

    if wish.approle is not None:
        question += f" And set up the role {wish.approle!r} with it?"

    click.confirm(question, abort=True, err=wish.as_json)


def _set_up(access: Access, role: Role, name: str, policy: str) -> _Made:
    access.write_role(_MOUNT, name, {"token_policies": [policy], **_OPTIONS[role]})
    role_id = access.role_id(_MOUNT, name)
    return _Made(name, role_id, access.wrapped_secret_id(_MOUNT, name, _WRAP_TTL))


def _show(state: AppState, wish: Wish, found: list[Rule], text: str) -> None:
    if not found:
        say_warning(
            f"VAULT_SECRETS has nothing for which {wish.role!r} needs a policy.",
        )
        return

    if wish.form == "json":
        click.echo(to_json(found))
    elif wish.form == "terraform":
        name = re.sub(r"[^a-z0-9_-]+", "-", f"{state.app.name}-{wish.role}".lower())
        click.echo(to_terraform(wish.role, state.app.name, name, found), nl=False)
    else:
        click.echo(text, nl=False)


def _tell_role(role: Role, made: _Made) -> None:
    key = "VAULT_AUTH" if role == "app" else "VAULT_ROTATE_AUTH"
    options = _OPTIONS[role]
    life = age(options.get("token_period") or options["token_ttl"])
    uses = "once" if options["secret_id_num_uses"] else "any number of times"
    click.echo(
        f"The role {made.name!r} is set up. Its tokens live {life}; a secret id logs in"
        f" {uses}, for {age(options['secret_id_ttl'])}. Let the job have in its"
        " config\n\n"
        f"    {key} = {json.dumps(_auth_of(made))}\n\n"
        "and in VAULT_WRAPPED_SECRET_ID this wrapping token. It works once, within"
        f" {age(made.wrapped.ttl)}:\n\n"
        f"    {made.wrapped.token}\n\n"
        "For the next job, whoever may write there makes another:\n\n"
        f"    bao write -wrap-ttl={_WRAP_TTL}s -f auth/{_MOUNT}/role/{made.name}"
        "/secret-id"
    )


def _auth_of(made: _Made) -> dict[str, str]:
    return {
        "method": "approle",
        "role_id": made.role_id,
        "role_name": made.name,
        "wrapped_secret_id_env": "VAULT_WRAPPED_SECRET_ID",
    }


def _report(
    wish: Wish, found: list[Rule], name: str | None, made: _Made | None
) -> dict[str, t.Any]:
    return {
        "for": wish.role,
        "rules": [dataclasses.asdict(rule) for rule in found],
        "policy": name,
        "approle": None
        if made is None
        else {
            "auth": _auth_of(made),
            "wrapping_token": made.wrapped.token,
            "wrapping_ttl": made.wrapped.ttl,
        },
    }


def _check_name(option: str, name: str | None) -> None:
    if name is None:
        return

    # Vault makes the names of policies lower case, so another one would be replaced.
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name in {"root", "default"}:
        raise click.UsageError(
            f"{option} takes a name of lower case letters, digits, '.', '_' and '-',"
            " other than 'root' and 'default'."
        )
