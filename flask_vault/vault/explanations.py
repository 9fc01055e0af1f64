"""What a refusal means for a document: which key or policy to look at."""

from __future__ import annotations

import typing as t

from ..errors import CheckAndSetError
from ..errors import SecretNotFoundError
from ..errors import SecretVersionError
from ..errors import VaultError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from .documents import Location
from .documents import Mount


def not_a_document(location: Location) -> VaultResponseError:
    return VaultResponseError(
        f"What the server keeps at {location.path!r} has not the shape of a document:"
        " set VAULT_KV_VERSION to the version of the mount, 1 or 2.",
        path=location.path,
    )


def missing(
    error: SecretNotFoundError,
    location: Location,
    mount: Mount,
    configured: int | None,
    namespace: str | None,
) -> SecretNotFoundError:
    what: dict[str, t.Any] = {
        "status": error.status,
        "path": location.path,
        "errors": error.errors,
    }
    metadata = error.metadata

    if metadata is not None:
        state = "destroyed" if metadata.get("destroyed") else "deleted"
        cure = (
            "pin another version, or remove 'version' for the newest."
            if location.version is not None
            else "write a new one, or undelete it with 'vault kv undelete'."
            if state == "deleted"
            else "write a new one."
        )
        gone = SecretVersionError(
            f"Version {metadata.get('version')} of {location.path!r} was {state}:"
            f" {cure}",
            **what,
        )
        gone.metadata = metadata
        return gone

    if location.version is not None:
        return SecretVersionError(
            f"There is no version {location.version} of {location.path!r}: pin another,"
            " or remove 'version' for the newest.",
            **what,
        )

    if any("no handler for route" in said for said in error.errors):
        return SecretNotFoundError(
            f"The server has no mount for {location.path!r}: check VAULT_MOUNT"
            f" ({mount.name!r}), or make it with 'flask vault init'.",
            **what,
        )

    rest = location.path[len(mount.name) + 1 :]
    hint = (
        " Leave out 'data/': Flask-Vault adds it for KV version 2."
        if rest.startswith("data/")
        else ""
    )

    if namespace is not None:
        hint += f" VAULT_NAMESPACE is {namespace!r}: check that it exists."

    if configured is not None:
        hint += f" VAULT_KV_VERSION says that the mount is version {configured}."

    return SecretNotFoundError(
        f"There is no document at {location.path!r}: check VAULT_MOUNT, VAULT_PREFIX"
        f" and the reference, or make it with 'flask vault init'.{hint}",
        **what,
    )


def lost_race(
    error: VaultResponseError, location: Location, cas: int | None
) -> VaultError:
    if not any("check-and-set" in said for said in error.errors):
        return error

    return CheckAndSetError(
        f"The document {location.path!r} is not at version {cas} any more: somebody"
        " else wrote it. Read it again and decide anew.",
        status=error.status,
        path=location.path,
        errors=error.errors,
    )


def denied(
    error: VaultPermissionError, location: Location, route: str, capabilities: str
) -> VaultPermissionError:
    said = " ".join("; ".join(error.errors).split())
    return VaultPermissionError(
        f"Vault denies access to {location.path!r} ({error.status}: {said}): the"
        f" token's policy must grant '{capabilities}' on {route!r}.",
        status=error.status,
        path=location.path,
        errors=error.errors,
    )
