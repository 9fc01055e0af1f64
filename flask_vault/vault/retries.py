"""When a request may be sent again, and after how long."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import random
import threading
import time
import typing as t

from ..errors import VaultNotInitializedError
from ..errors import VaultSealedError
from ..errors import VaultUnavailableError

#: Seconds of the first pause at most; it doubles with each further one.
_BASE: t.Final = 0.1
_LONGEST: t.Final = 5.0

#: Seconds that a request of a user's may wait for its one retry.
_IN_A_REQUEST: t.Final = 0.25

#: Retries at once, and for each second, that a process makes at most.
_BURST: t.Final = 10
_RATE: t.Final = 4.0


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long somebody waits for a server that does not answer.

    :param deadline: monotonic time. ``None`` allows one retry, soon.
    """

    deadline: float | None = None

    @classmethod
    def of(cls, seconds: float) -> Patience:
        """Until so many seconds from now."""
        return cls(time.monotonic() + seconds)

    def is_over(self) -> bool:
        """Whether there was a deadline, and it has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Budget:
    """A ceiling on the rate of retries, so that no mistake can storm a server.

    A token bucket; not for first tries.
    """

    def __init__(
        self,
        burst: float = _BURST,
        rate: float = _RATE,
        clock: cabc.Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._filled = clock()

    def take(self) -> bool:
        """Whether one more retry is allowed now."""
        with self._lock:
            self._fill()

            if self._tokens < 1:
                return False

            self._tokens -= 1
            return True

    def reserve(self) -> float:
        """Seconds until one more retry is allowed, which is then spoken for."""
        with self._lock:
            self._fill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        grown = self._tokens + (now - self._filled) * self._rate
        self._tokens = min(self._burst, grown)
        self._filled = now


def is_transient(error: VaultUnavailableError) -> bool:
    """Whether the same request may get another answer soon.

    Sealed and not initialized last until a person has done something.
    """
    return not isinstance(error, VaultSealedError | VaultNotInitializedError)


def pause_before_retry(
    error: VaultUnavailableError,
    attempt: int,
    patience: Patience,
    budget: Budget,
    *,
    repeatable: bool,
) -> float | None:
    """Seconds to wait before a request is sent again; ``None`` is not at all.

    Exponential with full jitter; ``Retry-After`` is obeyed.

    :param attempt: 0 after the first try.
    :param repeatable: whether being carried out twice does no harm.
    """
    if not is_transient(error) or (error.maybe_done and not repeatable):
        return None

    asked = error.retry_after or 0.0

    if patience.deadline is None:
        pause = max(asked, random.uniform(0, _IN_A_REQUEST))  # noqa: S311 - jitter
        return pause if attempt == 0 and asked <= 1 and budget.take() else None

    limit = min(_LONGEST, _BASE * 2.0**attempt)
    pause = asked + random.uniform(0, limit)  # noqa: S311 - jitter
    pause = max(pause, budget.reserve())
    left = patience.deadline - time.monotonic()
    return pause if pause < left else None
