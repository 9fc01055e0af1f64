"""The values with which somebody may be let in while a rotation is under way."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from .entries import Entry
from .errors import VaultError
from .keyring import KeyRing
from .resolve import from_document
from .vault.documents import Document

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
    fields = document.data.get("_rotation")
    journal = fields if isinstance(fields, dict) else {}
    steps = [step for step in journal.values() if isinstance(step, dict)]
    found: list[t.Any] = []

    for data in (
        document.data,
        *_with(document.data, steps, "pending"),
        *_with(document.data, steps, "previous"),
        *(() if before is None else (before.data,)),
    ):
        try:
            value = from_document(entry, dataclasses.replace(document, data=data)).value
        except VaultError:
            continue

        if value not in found:
            found.append(value)

    return tuple(found[:MOST])


def _with(
    data: cabc.Mapping[str, t.Any],
    steps: cabc.Iterable[cabc.Mapping[str, t.Any]],
    which: str,
) -> cabc.Iterator[cabc.Mapping[str, t.Any]]:
    for step in steps:
        fields = step.get(which)

        if isinstance(fields, dict):
            yield {**data, **fields}
