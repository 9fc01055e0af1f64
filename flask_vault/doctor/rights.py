"""Checks of who we are to the server, and of what we may do there."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from ..client import RING_VERSIONS
from ..client import VaultClient
from ..console import age
from ..entries import Entry
from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultError
from ..errors import VaultPermissionError
from ..policy import Role
from ..policy import rules
from ..resolve import Outcome
from ..resolve import resolve_entry
from ..vault.access import Access
from ..vault.documents import Document
from ..vault.documents import Location
from ..vault.documents import mapping
from .case import Case
from .findings import Finding
from .findings import of_error
from .server import require

#: Seconds below which a token is made anew so often that it is felt.
_SHORT: t.Final = 60


def login(case: Case) -> cabc.Iterator[Finding]:
    reason = require(case)

    if reason is None and case.is_wrapped("VAULT_AUTH"):
        reason = "the wrapping token works once, and is left for the app"

    if reason is not None:
        yield Finding("login", "skip", reason)
        return

    try:
        client = case.client_of("VAULT_AUTH")
        client.transport.login()
    except VaultError as error:
        yield of_error("login", error)
        return

    method = client.transport.method
    case.client = client

    if method.makes_tokens:
        yield Finding("login", "pass", f"{method.name} gives the app a token")
    else:
        yield Finding("login", "pass", f"the app has a token ({method.name})")


def token(case: Case) -> cabc.Iterator[Finding]:
    if case.client is None:
        yield Finding("token", "skip", "the app is not logged in")
        return

    transport = case.client.transport

    try:
        facts = Access(transport).token()
    except VaultPermissionError:
        yield Finding(
            "token",
            "warn",
            "the token may not look itself up, so its end is not seen coming.",
            "Give its role the policy 'default'.",
        )
        return
    except VaultError as error:
        # What nobody has looked at yet is not known to be good.
        case.client = None
        yield of_error("token", error)
        return

    told = f"policies {', '.join(facts.policies) or 'none'}"
    lives = "for ever" if facts.ttl is None else age(facts.ttl)

    if "root" in facts.policies:
        yield Finding(
            "token",
            "warn",
            "the app has a root token: whoever gets at it may do everything in Vault.",
            "Give it a role of its own: 'flask vault policy --approle NAME'.",
        )
    elif facts.ttl is not None and not facts.renewable and not _is_made(case.client):
        yield Finding(
            "token",
            "warn",
            f"the token ends in {lives} and cannot be renewed.",
            "Use a login method in VAULT_AUTH, or have an agent renew the token file.",
        )
    elif facts.ttl is not None and facts.ttl < _SHORT and _is_made(case.client):
        yield Finding(
            "token",
            "warn",
            f"a token lives {lives}: the app logs in all the time, and an outage of"
            " Vault is felt at once.",
            "Give the role a 'token_ttl' of an hour or more.",
        )
    else:
        yield Finding("token", "pass", f"{told}; lives {lives}")


def _is_made(client: VaultClient) -> bool:
    return client.transport.method.makes_tokens


# --- the documents -----------------------------------------------------------------


def entries(case: Case) -> cabc.Iterator[Finding]:
    """Each entry is read with the app's own token."""
    if not case.entries:
        return

    if not case.complete:
        yield Finding("entries", "skip", "the way to the documents is not known")
        return

    if case.client is None:
        yield Finding("entries", "skip", "the app is not logged in")
        return

    for entry in case.entries:
        place = case.client.catalog.location_of(entry)

        if place not in case.documents:
            case.documents[place] = _read(case.client, place)

        outcome = resolve_entry(entry, case.documents[place], case.environ)
        case.outcomes[entry.key] = outcome
        yield _of_outcome(entry, outcome)


def _read(client: VaultClient, place: Location) -> Document | VaultError:
    try:
        return client.kv.read(place)
    except VaultError as error:
        return error


def _of_outcome(entry: Entry, outcome: Outcome) -> Finding:
    if outcome.error is None:
        version = "" if outcome.version is None else f", version {outcome.version}"
        return Finding("entries", "pass", f"{entry.key}: {entry.reference}{version}")

    told = of_error("entries", outcome.error, "fail" if outcome.fatal else "warn")
    serves = "" if outcome.fatal else f" ({outcome.source} serves)"
    return dataclasses.replace(told, found=f"{entry.key}{serves}: {told.found}")


def history(case: Case) -> cabc.Iterator[Finding]:
    """What key rings need beside the documents."""
    places = {
        place: keys
        for place, keys in _by_place(case, lambda entry: entry.secret.keyring).items()
        if isinstance(case.documents.get(place), Document)
    }

    for place, keys in places.items():
        client = t.cast(VaultClient, case.client)
        ring = f"the key ring of {', '.join(keys)}"

        try:
            client.versions.of(place)
            kept = client.versions.limit_of(place)
        except VaultPermissionError:
            path = place.path
            yield Finding(
                "history",
                "warn",
                f"{ring} does not see that a version of {path!r} was deleted.",
                f"Grant {_lacking(client, 'app', place) or 'read on its metadata'};"
                " 'flask vault policy' prints the whole policy.",
            )
            continue
        except VaultError as error:
            yield of_error("history", error)
            continue

        if kept < RING_VERSIONS:
            yield Finding(
                "history",
                "warn",
                f"{place.path!r} keeps {kept} versions (max_versions): with as many"
                f" writes, {ring} forgets what it still accepts.",
                "Run 'flask vault init', or 'rotate', with a token that may say so.",
            )
        else:
            yield Finding(
                "history", "pass", f"{ring} sees its versions, of which {kept} are kept"
            )


def check_and_set(case: Case) -> cabc.Iterator[Finding]:
    """Whether two who write at the same time can be told apart."""
    mounts: dict[str, int] = {}
    client = case.client

    for place in _by_place(case, _is_written):
        if client is None or not isinstance(case.documents.get(place), Document):
            continue

        mount = client.kv.mount_of(place)
        mounts[mount.name] = mount.version

    for name, version in mounts.items():
        if version == 1:
            yield Finding(
                "cas",
                "warn",
                f"{name!r} is KV version 1, which has no check-and-set: two rotations"
                " at the same time overwrite each other.",
                "Move what is rotated to a mount of KV version 2.",
            )
            continue

        required = _cas_required(t.cast(VaultClient, client), name)
        told = "not to be seen" if required is None else "on" if required else "off"
        yield Finding(
            "cas",
            "pass",
            f"Flask-Vault writes to {name!r} by check-and-set; cas_required is {told}",
        )


def _is_written(entry: Entry) -> bool:
    # A static role is no document: Vault's database engine writes it.
    return entry.rotation is not None and entry.rotation.kind != "database-static"


def _cas_required(client: VaultClient, mount: str) -> bool | None:
    try:
        answer = client.transport.call(
            lambda made: made.secrets.kv.v2.read_configuration(mount)
        )
    except (VaultPermissionError, SecretNotFoundError):
        return None

    data = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
    return bool(data.get("cas_required"))


# --- writing -----------------------------------------------------------------------


def write(case: Case) -> cabc.Iterator[Finding]:
    """Whoever runs ``flask vault rotate`` here may do what it needs."""
    if not case.rotates:
        return

    identity = case.operator
    reason = require(case)

    if reason is None and not case.complete:
        reason = "the way to the documents is not known"

    if reason is None and identity == "VAULT_AUTH" and case.client is None:
        reason = "the app is not logged in"

    if reason is None and case.is_wrapped(identity):
        reason = (
            f"the wrapping token of {identity} works once, and is left for 'rotate'"
        )

    if reason is not None:
        yield Finding("write", "skip", reason)
        return

    try:
        client = case.client if identity == "VAULT_AUTH" else case.client_of(identity)
        client = t.cast(VaultClient, client)
        client.transport.login()
        lacking = _all_lacking(client, "rotator")
    except VaultPermissionError:
        yield Finding("write", "skip", f"{identity} may not ask what it may do")
        return
    except VaultError as error:
        told = of_error("write", error)
        yield dataclasses.replace(told, found=f"{identity}: {told.found}")
        return

    if not lacking:
        yield Finding("write", "pass", f"{identity} may do all that 'rotate' needs")
    elif identity == "VAULT_AUTH":
        # As it should be: the app reads, and somebody else rotates.
        yield Finding(
            "write",
            "skip",
            "the app may not write, and neither VAULT_ROTATE_AUTH nor VAULT_TOKEN says"
            " who rotates",
        )
    else:
        for line in lacking:
            yield Finding(
                "write",
                "fail",
                f"{identity} lacks {line}.",
                "Grant it: 'flask vault policy --for rotator' prints the whole policy.",
            )


def _all_lacking(client: VaultClient, role: Role) -> list[str]:
    wanted = rules(role, client.catalog, client.kv.mount_of)
    has = Access(client.transport).capabilities([rule.path for rule in wanted])
    return [
        f"'{', '.join(missing)}' on {rule.path!r}"
        for rule in wanted
        if (missing := [c for c in rule.capabilities if c not in has[rule.path]])
    ]


def _lacking(client: VaultClient, role: Role, place: Location) -> str | None:
    try:
        lines = _all_lacking(client, role)
    except (VaultPermissionError, VaultConfigError):
        return None

    name = place.path.rpartition("/")[2]
    return next((line for line in lines if line.endswith(f"/{name}'")), None)


def _by_place(
    case: Case, wanted: cabc.Callable[[Entry], bool]
) -> dict[Location, list[str]]:
    found: dict[Location, list[str]] = {}

    if case.client is not None:
        for entry in case.entries:
            if wanted(entry):
                place = case.client.catalog.location_of(entry)
                found.setdefault(place, []).append(entry.key)

    return found
