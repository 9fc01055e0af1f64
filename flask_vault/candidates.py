"""The values with which somebody may be let in while a rotation is under way."""

from __future__ import annotations

import dataclasses
import typing as t

from .entries import Entry
from .errors import VaultError
from .keyring import KeyRing
from .resolve import from_document
from .rotation.journal import candidates as journal
from .rotation.journal import RESERVED_FIELD
from .vault.documents import Document
from .vault.documents import mapping

#: More would let a database lock the user out.
MOST: t.Final = 3

_ORDER: t.Final = {"signing": 0, "pending": 1, "retired": 2}


def of_ring(ring: KeyRing) -> tuple[t.Any, ...]:
    """The values of a ring: the one that signs, those to come, those before."""
    keys = sorted(ring.accepted, key=lambda key: (_ORDER[key.state], -key.version))
    return tuple(key.value for key in keys[:MOST])


def of_document(
    entry: Entry, document: Document, before: Document | None = None
) -> tuple[t.Any, ...]:
    """The values of a document: its own, those of an open rotation, and its last one.

    :param before: what the document was until it changed, where that is known.
    """
    fields = mapping(document.data.get(RESERVED_FIELD)).keys() - {"v"}
    present = [data for f in sorted(fields) for data in journal(document.data, f)]
    past = [] if before is None else [before.data]
    found: list[t.Any] = []

    for data in (document.data, *present, *past):
        changed = dataclasses.replace(document, data=data)

        try:
            value = from_document(entry, changed).value
        except VaultError:
            continue

        if value not in found:
            found.append(value)

    return tuple(found[:MOST])
