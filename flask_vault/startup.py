"""Every document that an app needs, read at its start."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging

from .bootstrap import BootstrapCache
from .errors import BackupError
from .errors import VaultConfigError
from .errors import VaultError
from .errors import VaultPermissionError
from .errors import VaultUnavailableError
from .errors import without_frames
from .store import Store
from .vault.documents import Document
from .vault.documents import Location
from .vault.kv import KV
from .vault.transport import Transport

_log = logging.getLogger("flask_vault")

Found = dict[Location, Document | VaultError]


def load_documents(
    transport: Transport,
    kv: KV,
    store: Store,
    places: cabc.Iterable[Location],
    cache: BootstrapCache | None,
    patience: float,
) -> Found:
    """Read each document once, several at a time.

    :param cache: serves what an earlier start kept when the server does not answer.
        After a denial it does not.
    :param patience: seconds to wait for a server that does not answer.
    """
    distinct = list(dict.fromkeys(places))

    if not distinct:
        return {}

    with transport.patient(patience):
        found = _ask(transport, kv, store, distinct)

    return found if cache is None else _through(cache, store, found)


def _ask(transport: Transport, kv: KV, store: Store, places: list[Location]) -> Found:
    """Log in first: a login that fails is not tried again for each document."""
    try:
        transport.login()

        for place in places:
            # What is wrong with one mount is told by the reads in it.
            with contextlib.suppress(VaultConfigError, VaultPermissionError):
                kv.mount_of(place)
    except VaultConfigError:
        raise
    except VaultError as error:
        return dict.fromkeys(places, without_frames(error))

    return store.read_many(places)


def _through(cache: BootstrapCache, store: Store, found: Found) -> Found:
    away = [p for p, e in found.items() if isinstance(e, VaultUnavailableError)]

    if not away:
        return found

    try:
        kept, age = cache.load()
    except BackupError as error:
        _log.warning("%s", error)
        return found

    served = {place: kept[place] for place in away if place in kept}
    paths = {place.path for place in served}
    # The older versions that a key ring has.
    served |= {p: d for p, d in kept.items() if p.version and p.path in paths}

    if served:
        _log.warning(
            "Vault does not answer: %d of %d documents come from VAULT_BOOTSTRAP_CACHE,"
            " %.0f s old.",
            sum(place in served for place in away),
            len(found),
            age,
        )

    for place in away:
        if place in served:
            store.put_stale(place, served[place])

    return {**found, **served}
