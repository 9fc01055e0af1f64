"""Asks whether a path has changed: by its data, or by its metadata for a key ring."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import logging
import time

from .history import Historian
from .history import Need
from .store import Held
from .vault.documents import Location
from .vault.kv import KV

_log = logging.getLogger("flask_vault")


class Poller:
    """Sends one request for a path that has not changed."""

    def __init__(self, kv: KV, historian: Historian) -> None:
        self._kv = kv
        self._historian = historian
        self._told: dict[Location, tuple[int | None, int | None]] = {}

    def poll(
        self, location: Location, needs: cabc.Sequence[Need], base: Held | None
    ) -> Held:
        """What is at a path now.

        :param needs: of its key rings, if any.
        :param base: what was there before. Its document and history are returned when
            nothing is new, or when the answer is older than they are.
        :raises VaultError: when the answer is no good.
        """
        # Before the request: what it tells is at least as old as the question.
        began = time.monotonic()

        if needs:
            before = None if base is None else base.history
            newest = None if base is None or before is not None else base.document
            history = self._historian.of(location, needs, before, newest)

            document = history.documents.get(history.newest.number)

            if document is None:
                document = base.document if base else self._kv.read(location)

            if (
                base is not None
                and base.document.origin == document.origin
                and document.is_same_as(base.document)
            ):
                document = base.document

            return Held(document, began, history)

        document = self._kv.read(location, retry=False)

        if base is None:
            return Held(document, began)

        if document.is_older_than(base.document):
            self._tell_older(location, document.version, base.document.version)
            return dataclasses.replace(base, since=began)

        confirmed = base.document.origin == document.origin

        if confirmed and document.is_same_as(base.document):
            return dataclasses.replace(base, since=began)

        return Held(document, began)

    def _tell_older(
        self, location: Location, version: int | None, held: int | None
    ) -> None:
        if self._told.get(location) == (version, held):
            return

        self._told[location] = version, held
        _log.warning(
            "Vault serves version %s of %r after version %s, which is kept until the"
            " process starts anew. A standby that lags shows that for a moment; a"
            " server that was restored to an old state goes on doing so.",
            version,
            location.path,
            held,
        )
