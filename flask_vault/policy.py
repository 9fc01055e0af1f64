"""The least policy with which an app starts and reads."""

from __future__ import annotations

import collections.abc as cabc

from .catalog import Catalog
from .vault.documents import Location
from .vault.documents import Mount


def app_policy(catalog: Catalog, mount_of: cabc.Callable[[Location], Mount]) -> str:
    """A policy in HCL that allows reading the documents of the entries, and no more.

    For a key ring that is the metadata, too: it tells which versions are deleted.

    The question for a mount's KV version needs no right of its own, and a token may
    look itself up by the server's policy ``default``.

    :param mount_of: tells the mount of a location, and its KV version.
    """
    rules: dict[str, None] = {}

    for entry in catalog.entries:
        location = catalog.location_of(entry).newest()
        mount = mount_of(location)
        path = location.path[len(mount.name) + 1 :]
        kinds = ["data/"] if mount.version == 2 else [""]

        if entry.secret.keyring:
            kinds.append("metadata/")

        for kind in kinds:
            rules[
                f'path "{mount.name}/{kind}{path}" {{\n  capabilities = ["read"]\n}}\n'
            ] = None

    return "\n".join(rules)
