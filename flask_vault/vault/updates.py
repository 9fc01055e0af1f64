"""Changes of a document by check-and-set, while others write to it as well."""

from __future__ import annotations

import collections.abc as cabc
import itertools
import random
import time
import typing as t

from ..errors import CheckAndSetError
from ..errors import VaultSealedError
from ..errors import VaultUnavailableError
from .documents import Document
from .documents import Location
from .kv import KV

#: What the document becomes; ``None`` leaves it as it is, and ends the update.
Change = cabc.Callable[[Document], cabc.Mapping[str, t.Any] | None]

#: How often a race is lost before the update gives up, unless there is a deadline.
_TRIES: t.Final = 5

_LONGEST_PAUSE: t.Final = 2.0


def update(
    kv: KV,
    location: Location,
    change: Change,
    *,
    seen: Document | None = None,
    expected: int | None = None,
    outlast: float = 0.0,
) -> Document:
    """Change a document, on top of whatever others write to it meanwhile.

    ``change`` is asked again for each version that was found instead of the expected
    one, so it must decide by the document that it is given alone.

    :param seen: the document as it was read before, which spares a request.
    :param expected: the only version that may be replaced, 0 for none at all. With
        another one there, the race is lost for good.
    :param outlast: seconds for which lost races and servers that do not answer are
        outlasted. A write whose answer is lost may have been done, so ``change`` must
        recognize its own work. 0 gives up after a few lost races, and at once
        when nobody answers.
    :return: the document as it is then, changed or not.
    :raises CheckAndSetError: when too many races were lost, or that for ``expected``.
    :raises VaultUnavailableError: when nobody could answer.
    """
    deadline = time.monotonic() + outlast

    for attempt in itertools.count(1):
        try:
            present = kv.newest(location) if seen is None else seen
            found = present.version

            if expected is not None and found is not None and found != expected:
                raise _not_expected(location, found, expected)

            after = change(present)

            if after is None:
                return present

            base = found if expected is None else expected
            version = kv.write(location, after, base)
        except CheckAndSetError:
            # What a standby that lags behind still shows must not be written upon, and
            # is worth another look.
            lost = expected is not None and (found is None or found >= expected)

            if lost or (time.monotonic() > deadline and attempt >= _TRIES):
                raise
        except VaultSealedError:
            # It lasts until a person has done something.
            raise
        except VaultUnavailableError:
            if time.monotonic() > deadline:
                raise
        else:
            return Document(location.path, after, version, kv.now())

        # A standby that lags behind needs a moment (measured: up to 0.4 s), an election
        # some seconds.
        seen = None
        limit = min(_LONGEST_PAUSE, 0.05 * 2.0**attempt)
        time.sleep(random.uniform(0.02, limit))  # noqa: S311 - jitter

    raise AssertionError  # pragma: no cover


def _not_expected(location: Location, found: int, expected: int) -> CheckAndSetError:
    return CheckAndSetError(
        f"The document {location.path!r} is not at version {expected} any more, but at"
        f" {found}: read it again and decide anew.",
        path=location.path,
    )
