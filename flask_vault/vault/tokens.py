"""A token, and when to do something about its end."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import math
import random
import time
import typing as t

from ..errors import VaultResponseError
from .documents import mapping

#: A token is renewed when this part of what it has left is over, at a random point
#: between the two, so that the workers of a host do not come at once.
RENEW_BETWEEN: t.Final = (0.6, 2 / 3)

#: Seconds after which a token that we were given, and did not make, is asked about.
#: A script that ends sooner spares the request, and a use of the token.
INSPECT_AFTER: t.Final = 10.0

#: A renewal that gives less than this part of what was asked for tells that the token's
#: maximum is near.
_SHORT: t.Final = 0.9


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and what the server said of it when it was made or renewed."""

    value: str = dataclasses.field(repr=False)
    #: Whether we logged in for it. It is ours to revoke, then.
    ours: bool = False
    accessor: str | None = None
    #: Seconds that it lives, counted from ``obtained``; ``None`` is for ever, or
    #: unknown.
    ttl: float | None = None
    renewable: bool = False
    #: How many requests it is good for; ``None`` is any number, or unknown.
    uses: int | None = None
    #: Monotonic time before the request that made it.
    obtained: float = dataclasses.field(default_factory=time.monotonic)
    #: Seconds for which it was made at first; what a renewal asks for.
    lease: float | None = None

    @property
    def expires_at(self) -> float:
        """Monotonic time of its end."""
        return math.inf if self.ttl is None else self.obtained + self.ttl

    def renewed(self, answer: cabc.Mapping[str, t.Any], began: float) -> Token:
        """The same token after a renewal.

        :param answer: of ``auth/token/renew-self``.
        :param began: monotonic time before the request.
        """
        auth = mapping(answer.get("auth"))
        ttl = _seconds(auth.get("lease_duration"))
        short = ttl is not None and self.lease is not None and ttl < self.lease * _SHORT
        return dataclasses.replace(
            self,
            ttl=ttl,
            obtained=began,
            # At its maximum another renewal gives nothing; a new token does.
            renewable=bool(auth.get("renewable")) and not short,
        )

    def inspected(self, answer: cabc.Mapping[str, t.Any], began: float) -> Token:
        """The same token with what ``auth/token/lookup-self`` says of it."""
        data = mapping(answer.get("data"))
        lease = _seconds(data.get("period")) or _seconds(data.get("creation_ttl"))
        return dataclasses.replace(
            self,
            accessor=data.get("accessor") or None,
            ttl=_seconds(data.get("ttl")),
            renewable=bool(data.get("renewable")),
            uses=_count(data.get("num_uses")),
            obtained=began,
            lease=lease,
        )


def token_from_login(answer: cabc.Mapping[str, t.Any], began: float) -> Token:
    """Read the ``auth`` part of a login's answer.

    :param began: monotonic time before the request.
    :raises VaultResponseError: when there is none.
    """
    auth = answer.get("auth")

    if not isinstance(auth, dict) or not isinstance(auth.get("client_token"), str):
        raise VaultResponseError(
            "The answer to the login holds no token: check that VAULT_ADDR is Vault's"
            " address."
        )

    ttl = _seconds(auth.get("lease_duration"))
    return Token(
        auth["client_token"],
        ours=True,
        accessor=auth.get("accessor") or None,
        ttl=ttl,
        # A batch token cannot be renewed, whatever the flag says.
        renewable=bool(auth.get("renewable")) and auth.get("token_type") != "batch",
        uses=_count(auth.get("num_uses")),
        obtained=began,
        lease=ttl,
    )


def _seconds(value: object) -> float | None:
    """A time to live; 0 is how Vault says that there is no end."""
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


Step = t.Literal["renew", "replace", "inspect"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do about a token, and when (monotonic time)."""

    step: Step | None
    at: float

    @classmethod
    def of(cls, token: Token, can_login: bool) -> Plan:
        """The next step in the life of a token.

        :param can_login: whether another token is to be had.
        """
        if token.ttl is None:
            known = token.ours or token.accessor is not None
            at = math.inf if known else token.obtained + INSPECT_AFTER
            return cls(None if known else "inspect", at)

        # Jitter, nothing that anybody could gain from guessing.
        part = random.uniform(*RENEW_BETWEEN)  # noqa: S311
        at = token.obtained + token.ttl * part

        if token.renewable:
            return cls("renew", at)

        return cls("replace", at) if can_login else cls(None, math.inf)

    def postponed(self, token: Token) -> Plan:
        """The same step a little later, while there is time."""
        now = time.monotonic()
        left = max(0.0, token.expires_at - now)
        return Plan(self.step, now + max(0.2, min(5.0, left / 3)))
