"""The least policies: for the app, whoever rotates, and ``flask vault init``."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import typing as t

from .catalog import Catalog
from .entries import Entry
from .errors import VaultConfigError
from .vault.documents import Location
from .vault.documents import Mount

#: Who a policy is for: the app, whoever rotates and restores, or ``flask vault init``.
Role = t.Literal["app", "rotator", "init"]

ROLES: t.Final[tuple[Role, ...]] = ("app", "rotator", "init")

MountOf = cabc.Callable[[Location], Mount]

_ORDER: t.Final = ("create", "read", "update")

#: Between the mount and the role of Vault's own database engine.
_STATIC: t.Final = "/static-creds/"

#: What a path of a policy, its HCL or Terraform reads as something else.
_NOT_LITERAL: t.Final = ("{{", "${", "%{", '"', "\\")

_DEFAULT: t.Final = (
    "To look its own token up, to renew it and to ask what it may do, a token has the",
    "policy 'default', unless its role says 'token_no_default_policy'.",
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What may be done at a path.

    :param keys: the config keys for which it is needed; none for the mount itself.
    """

    path: str
    capabilities: tuple[str, ...]
    keys: tuple[str, ...]


def app_policy(catalog: Catalog, mount_of: MountOf) -> str:
    """The policy of the app itself in HCL; empty where it reads nothing.

    :param mount_of: tells the mount of a location, and its KV version.
    """
    return "\n".join(map(_hcl_of, rules("app", catalog, mount_of)))


def rules(role: Role, catalog: Catalog, mount_of: MountOf) -> list[Rule]:
    """What a role needs, and no more, path by path.

    The question for a mount's KV version needs no right of its own: it is answered to
    all that may do something there.

    :param mount_of: tells the mount of a location, and its KV version.
    :raises VaultConfigError: for a path that a policy cannot name.
    """
    documents: dict[Location, list[Entry]] = {}
    found: dict[str, tuple[set[str], dict[str, None]]] = {}

    for entry in catalog.entries:
        # A pinned version cannot be made.
        if role != "init" or entry.secret.version is None:
            place = catalog.location_of(entry).newest()
            documents.setdefault(place, []).append(entry)

    for location, entries in documents.items():
        for path, capabilities, keys in _needs(role, location, entries, mount_of):
            had, users = found.setdefault(path, (set(), {}))
            had.update(capabilities)
            users.update(dict.fromkeys(keys))

    return [
        Rule(_literal(path), tuple(c for c in _ORDER if c in had), tuple(users))
        for path, (had, users) in found.items()
    ]


def _needs(
    role: Role, location: Location, entries: list[Entry], mount_of: MountOf
) -> cabc.Iterator[tuple[str, set[str], list[str]]]:
    keys = [entry.key for entry in entries]
    rings = [entry.key for entry in entries if entry.secret.keyring]
    rotated = [entry.key for entry in entries if entry.rotation is not None]
    generated = [e.key for e in entries if e.rotation and e.rotation.kind == "signing"]

    if any(e.rotation and e.rotation.kind == "database-static" for e in entries):
        yield location.path, {"read"}, keys

        if role == "rotator":
            rotate = location.path.replace(_STATIC, "/rotate-role/", 1)
            yield rotate, {"update"}, rotated

        return

    mount = mount_of(location)
    path = location.path[len(mount.name) + 1 :]
    written = {"app": [], "rotator": rotated, "init": generated}[role]

    if role == "init" and mount.assumed:
        yield f"sys/mounts/{mount.name}", {"update"}, []

        if mount.version == 2:
            yield f"{mount.name}/config", {"read"}, []

    data = f"{mount.name}/data/{path}" if mount.version == 2 else location.path
    yield data, {"read"}, keys

    if written:
        # A document that is gone for good is created anew by a restore.
        yield data, {"create", "update"}, written

    if mount.version == 1:
        return

    metadata = f"{mount.name}/metadata/{path}"

    if rings:
        # It tells which versions are deleted, and how many are kept.
        yield metadata, {"read"}, rings

        if role == "init" or written:
            yield metadata, {"update"}, rings

    if role == "rotator" and written:
        # For 'rotate --compromised', which has to know what there is to destroy.
        yield metadata, {"read"}, written
        yield f"{mount.name}/destroy/{path}", {"update"}, written


def _literal(path: str) -> str:
    if (
        path.endswith("*")
        or "+" in path.split("/")
        or any(mark in path for mark in _NOT_LITERAL)
    ):
        raise VaultConfigError(
            f"No policy can name the path {path!r}: '*' at the end and the segment '+'"
            " stand for other paths there, and quotes, backslashes and braces with '$',"
            " '%' or doubled are not literal. Move the secret to a plainer path.",
            path=path,
        )

    return path


# --- forms -------------------------------------------------------------------------


def to_hcl(role: Role, app: str, found: cabc.Sequence[Rule]) -> str:
    """The policy in Vault's own language.

    :param app: the app's name, for the comment.
    """
    head = [f"The least policy for {app!r}: flask vault policy --for {role}", *_DEFAULT]
    comment = "".join(f"# {line}\n" for line in head)
    return "\n".join([comment, *map(_hcl_of, found)])


def _hcl_of(rule: Rule) -> str:
    comment = f"# {', '.join(rule.keys)}\n" if rule.keys else ""
    capabilities = ", ".join(f'"{name}"' for name in rule.capabilities)
    return (
        f'{comment}path "{rule.path}" {{\n'
        f"  capabilities = [{capabilities}]\n"
        "}\n"
    )  # fmt: skip


def to_json(found: cabc.Sequence[Rule]) -> str:
    """The policy in the JSON that Vault takes for it, too."""
    paths = {rule.path: {"capabilities": list(rule.capabilities)} for rule in found}
    return json.dumps({"path": paths}, indent=2)


def to_terraform(role: Role, app: str, name: str, found: cabc.Sequence[Rule]) -> str:
    """A resource of Terraform's or OpenTofu's provider for Vault.

    :param name: of the policy.
    """
    label = "".join(c if c.isalnum() else "_" for c in name)
    lines = to_hcl(role, app, found).splitlines()
    body = "\n".join(f"    {line}" if line else "" for line in lines)
    return (
        f'resource "vault_policy" "{label}" {{\n'
        f'  name   = "{name}"\n'
        "  policy = <<-EOT\n"
        f"{body}\n"
        "  EOT\n"
        "}\n"
    )
