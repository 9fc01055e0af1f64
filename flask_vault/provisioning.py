"""Creates what an app needs in Vault and is not there yet. Leaves what exists."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from .catalog import Catalog
from .entries import Entry
from .entries import MISSING
from .errors import SecretNotFoundError
from .errors import VaultError
from .errors import VaultPermissionError
from .rotation import generators
from .templates import Template
from .vault.documents import Document
from .vault.documents import Location
from .vault.kv import KV
from .vault.updates import update


@dataclasses.dataclass(frozen=True)
class Provision:
    """What became of one field, or of a document that an entry wants whole.

    :param action: ``exists``, ``created``, ``missing`` (only a person knows it), or
        ``denied``.
    :param needed: the app does not start without it.
    """

    reference: str
    action: t.Literal["exists", "created", "missing", "denied"]
    keys: tuple[str, ...]
    needed: bool = True
    error: VaultError | None = None


#: Gives the value of a field that nobody generates, or ``None``. For a document that an
#: entry wants whole it is asked for the field ``""``, and gives a mapping.
Seed = cabc.Callable[[str, Entry], t.Any]


def no_seed(field: str, entry: Entry) -> t.Any:
    """Knows nothing."""
    return None


def provision(
    kv: KV,
    catalog: Catalog,
    seed: Seed = no_seed,
    environ: cabc.Mapping[str, str] | None = None,
) -> list[Provision]:
    """Create mounts, documents and generated values.

    A value is generated for an entry with ``rotate``. One that is there is never
    touched: the write is a check-and-set on the version that was read. A document that
    is denied does not keep the others from being made.

    :param seed: asked for the fields that are not generated.
    :param environ: where an entry's ``env`` may serve instead.
    """
    wanted: dict[Location, list[Entry]] = {}

    for entry in catalog.entries:
        # A pinned version cannot be made.
        if entry.secret.version is None:
            wanted.setdefault(catalog.location_of(entry), []).append(entry)

    return [
        done
        for location, entries in wanted.items()
        for done in _provision_document(kv, location, entries, seed, environ or {})
    ]


def fields_of(entry: Entry) -> list[str]:
    """The fields of its document that an entry needs; ``""`` is the whole of it."""
    if entry.secret.template is not None:
        fields = list(Template.parse(entry.secret.template).fields)
    else:
        fields = [entry.reference.field or ""]

    if entry.rotated_field is not None:
        fields.append(entry.rotated_field)

    return list(dict.fromkeys(fields))


def _provision_document(
    kv: KV,
    location: Location,
    entries: list[Entry],
    seed: Seed,
    environ: cabc.Mapping[str, str],
) -> list[Provision]:
    fields: dict[str, list[Entry]] = {}

    for entry in entries:
        for field in fields_of(entry):
            fields.setdefault(field, []).append(entry)

    try:
        present, created = _fill(kv, location, fields, seed)
    except VaultPermissionError as error:
        denial: VaultError | None = error
        present, created = {}, set()
    else:
        denial = None

    label = str(dataclasses.replace(entries[0].reference, field=None))
    done: list[Provision] = []

    for field, users in fields.items():
        there = bool(present) if field == "" else field in present
        action: t.Literal["exists", "created", "missing", "denied"] = (
            "denied"
            if denial
            else "created"
            if field in created
            else "exists"
            if there
            else "missing"
        )
        done.append(
            Provision(
                f"{label}#{field}" if field else label,
                action,
                tuple(user.key for user in users),
                any(_is_needed(user, environ) for user in users),
                denial,
            )
        )

    return done


def _fill(
    kv: KV, location: Location, fields: cabc.Mapping[str, list[Entry]], seed: Seed
) -> tuple[cabc.Mapping[str, t.Any], set[str]]:
    """Write what is missing and can be had.

    :return: the document, and the fields that were made.
    """
    made: dict[str, t.Any] = {}
    created: set[str] = set()

    def add(present: Document) -> cabc.Mapping[str, t.Any] | None:
        new: dict[str, t.Any] = {}
        # Whoever was faster may have made some of them.
        created.clear()

        for field, entries in fields.items():
            if bool(present.data) if field == "" else field in present.data:
                continue

            if field not in made:
                made[field] = _value_for(field, entries, seed)

            if made[field] is not None:
                created.add(field)
                new.update(made[field] if field == "" else {field: made[field]})

        return {**present.data, **new} if new else None

    present = update(kv, location, add, seen=_present(kv, location))
    return present.data, created


def _present(kv: KV, location: Location) -> Document:
    """The document as it is; an empty one, in a mount that is there, when it is not."""
    try:
        return kv.read(location)
    except SecretNotFoundError as error:
        if any("no handler for route" in said for said in error.errors):
            kv.make_mount(location)

    return kv.newest(location)


def _value_for(field: str, entries: list[Entry], seed: Seed) -> t.Any:
    for entry in entries:
        rotation = entry.rotation

        # A database's password is made by whoever makes the database's user.
        if (
            rotation is not None
            and rotation.kind == "signing"
            and entry.rotated_field == field
        ):
            return generators.make(rotation.generator, rotation.options)

    return seed(field, entries[0])


def _is_needed(entry: Entry, environ: cabc.Mapping[str, str]) -> bool:
    secret = entry.secret
    served = secret.default is not MISSING or bool(
        secret.env and environ.get(secret.env)
    )
    return secret.required and not served
