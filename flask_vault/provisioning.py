"""Creates what an app needs in Vault and is not there yet. Leaves what exists."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from .catalog import Catalog
from .entries import Entry
from .entries import Rotation
from .errors import CheckAndSetError
from .errors import SecretNotFoundError
from .rotation import generators
from .templates import Template
from .vault.kv import Document
from .vault.kv import KV
from .vault.kv import Location


@dataclasses.dataclass(frozen=True)
class Provision:
    """What became of one field.

    :param action: ``exists``, ``created``, or ``missing``: only a person knows it.
    """

    reference: str
    action: t.Literal["exists", "created", "missing"]
    keys: tuple[str, ...]


#: Gives the value of a field that nobody generates, or ``None``.
Seed = cabc.Callable[[Location, str, Entry], t.Any]


def provision(
    kv: KV, catalog: Catalog, seed: Seed = lambda location, field, entry: None
) -> list[Provision]:
    """Create mounts, documents and generated values.

    A value is generated for an entry with ``rotate``. One that is there is never
    touched: the write is a check-and-set on the version that was read.

    :param seed: asked for the fields that are not generated.
    :raises VaultPermissionError: when the token may not write.
    """
    wanted: dict[Location, dict[str, list[Entry]]] = {}

    for entry in catalog.entries:
        # A pinned version cannot be made.
        if entry.secret.version is None:
            fields = wanted.setdefault(catalog.location_of(entry), {})

            for field in _fields(entry):
                fields.setdefault(field, []).append(entry)

    done: list[Provision] = []

    for location, fields in wanted.items():
        done += _provision_document(kv, location, fields, seed)

    return done


def _fields(entry: Entry) -> list[str]:
    if entry.secret.template is not None:
        fields = list(Template.parse(entry.secret.template).fields)
    else:
        fields = [entry.reference.field] if entry.reference.field else []

    if entry.rotated_field is not None:
        fields.append(entry.rotated_field)

    return list(dict.fromkeys(fields))


def _provision_document(
    kv: KV,
    location: Location,
    fields: cabc.Mapping[str, list[Entry]],
    seed: Seed,
) -> list[Provision]:
    label = next(iter(fields.values()))[0].reference.path
    new: dict[str, t.Any] = {}

    while True:
        present = _present(kv, location)
        missing = [field for field in fields if field not in present.data]

        for field in missing:
            if field not in new:
                value = _generated(field, fields[field])
                new[field] = (
                    seed(location, field, fields[field][0]) if value is None else value
                )

        created = {f: new[f] for f in missing if new[f] is not None}

        if created:
            try:
                kv.write(location, {**present.data, **created}, present.version)
            except CheckAndSetError:
                # Somebody else is creating it, too. Theirs stays.
                continue

        return [
            Provision(
                f"{label}#{field}",
                "created"
                if field in created
                else "missing"
                if field in missing
                else "exists",
                tuple(entry.key for entry in entries),
            )
            for field, entries in fields.items()
        ]


def _present(kv: KV, location: Location) -> Document:
    """The document as it is; an empty one, in a mount that is there, when it is not."""
    try:
        return kv.read(location)
    except SecretNotFoundError as error:
        if any("no handler for route" in said for said in error.errors):
            kv.make_mount(location)

    return kv.newest(location)


def _generated(field: str, entries: list[Entry]) -> t.Any:
    for entry in entries:
        rotation: Rotation | None = entry.rotation

        if rotation is not None and entry.rotated_field == field:
            # A database's password is made by whoever makes the database's user.
            if rotation.kind == "signing":
                return generators.make(rotation.generator, rotation.options)

    return None
