"""What the status page says, in words. How it looks is the template's business."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import math
import time
import typing as t

from .errors import VaultConnectionError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultNotInitializedError
from .errors import VaultRateLimitedError
from .errors import VaultResponseError
from .errors import VaultSealedError
from .errors import VaultTLSError
from .errors import VaultUnavailableError
from .state import AppState
from .status_rows import age
from .status_rows import Row
from .status_rows import rows_of
from .status_rows import Tone

#: Most names in a sentence.
_NAMES: t.Final = 3

#: What is wrong with all documents when it is wrong with one, and what to call it.
_OF_THE_SERVER: t.Final[tuple[tuple[type[VaultError], str], ...]] = (
    (VaultNotInitializedError, "Not initialized"),
    (VaultSealedError, "Sealed"),
    (VaultLoginError, "Login refused"),
    (VaultTLSError, "Certificate not trusted"),
    (VaultRateLimitedError, "Rate limit reached"),
    (VaultConnectionError, "No answer"),
    (VaultUnavailableError, "Out of order"),
    (VaultResponseError, "Not Vault's answers"),
)

#: Of the health's words: in which tone they are said, and the headline.
_STATUSES: t.Final[dict[str, tuple[Tone, str]]] = {
    "pass": ("good", "All is well"),
    "warn": ("warn", "Serving, with a warning"),
    "fail": ("bad", "Not fit to serve"),
}


@dataclasses.dataclass(frozen=True)
class Card:
    """One fact about the whole app.

    :param share: how much is left of it, from 0 to 100.
    """

    title: str
    value: str
    note: str
    tone: Tone
    share: int | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the page says.

    :param status: the health's word.
    :param at: the time of day by Vault's clock.
    """

    status: str
    tone: Tone
    headline: str
    reasons: tuple[str, ...]
    cards: tuple[Card, ...]
    rows: tuple[Row, ...]
    at: str


def tone_of(status: str) -> Tone:
    """How one of the health's words is said."""
    return _STATUSES[status][0]


def facts_of(state: AppState, details: cabc.Mapping[str, t.Any]) -> Facts:
    """What the page of an app says.

    :param details: the health's, so that both tell the same.
    """
    enabled = details["enabled"]
    now = (
        state.client.now() if enabled else datetime.datetime.now(datetime.timezone.utc)
    )
    failures = state.client.failures
    polled = state.refresher.freshness.errors
    errors = {
        place: error
        for place in state.live.places
        if (error := polled.get(place.path) or failures.get(place)) is not None
        # What is wrong with the server is said once, and not beside the path that met
        # it first.
        and not isinstance(error, tuple(kind for kind, _ in _OF_THE_SERVER))
    }
    rows = rows_of(state, details, now, errors)
    cards = [_refresh(details), _secrets(rows)]

    if enabled:
        at_start = [o.error for o in state.outcomes.values() if o.error is not None]
        wrong = [*polled.values(), *failures.values(), *at_start]
        cards = [_server(details, wrong), _token(state), *cards]

    status = details["status"]
    tone, headline = _STATUSES[status]

    # Nothing that a load balancer could do something about.
    if status == "pass" and _unfinished(rows):
        tone, headline = "warn", "Serving, with a rotation to finish"

    return Facts(
        status,
        tone,
        headline,
        tuple(_reasons(state, details, rows)),
        tuple(cards),
        rows,
        f"{now:%H:%M:%S} UTC",
    )


def _reasons(
    state: AppState, details: cabc.Mapping[str, t.Any], rows: cabc.Sequence[Row]
) -> cabc.Iterator[str]:
    refresh = details["refresh"]

    if not details["loaded"]:
        yield "The secrets of this process were never loaded."

    if state.refresher.is_dead():
        yield "The refresh thread is dead, and cannot be started."

    if refresh is None:
        yield "VAULT_ENABLED is False, so nothing comes from Vault."
    elif refresh["errors"]:
        yield (
            f"The refresh has failed for {age(refresh['failing_seconds'])}"
            f" ({', '.join(refresh['errors'])}). The app goes on with what it has."
        )
    elif details["stale"]:
        yield "A document could not be read anew. The app goes on with what it has."

    if refresh is not None and refresh["stale"] and refresh["mode"] != "off":
        yield (
            "Nothing proves that what this process knows is still so: other hosts may"
            " sign with keys that it has not heard of."
        )

    missing = [row.key for row in rows if row.source_tone in {"warn", "bad"}]

    if missing:
        yield f"Vault's value is missing for {_some(missing)}."

    if unfinished := _unfinished(rows):
        yield f"A rotation takes longer than it should: {_some(unfinished)}."

    if details["status"] == "pass" and refresh is not None:
        yield "Every secret is as Vault has it."


def _unfinished(rows: cabc.Iterable[Row]) -> list[str]:
    return [row.key for row in rows if any(r.cure for r in row.rotations)]


def _some(names: cabc.Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    left = len(names) - _NAMES
    return f"{shown} and {left} more" if left > 0 else shown


def _server(
    details: cabc.Mapping[str, t.Any], errors: cabc.Sequence[VaultError]
) -> Card:
    refresh = details["refresh"]
    seen = refresh["last_fresh_seconds"]
    note = "not asked yet" if seen is None else f"active node answered {age(seen)} ago"

    for kind, words in _OF_THE_SERVER:
        if any(isinstance(error, kind) for error in errors):
            return Card("Server", words, note, "bad")

    if refresh["mode"] == "off":
        return Card("Server", "Asked when needed", note, "idle")

    # All paths could be read, and the active node has not answered.
    if refresh["stale"] and not refresh["errors"]:
        return Card("Server", "Only a standby answers", note, "warn")

    return Card("Server", "Answers", note, "good")


def _token(state: AppState) -> Card:
    transport, looked_after = state.client.transport, state.refresher.mode != "off"
    token, method = transport.token, transport.method

    if token is None:
        return Card("Token", "None yet", f"{method.name} login", "idle")

    if token.ttl is None:
        return Card("Token", "No end known", f"{method.name} login", "good")

    left = token.expires_at - time.monotonic()
    share = max(0, min(100, round(100 * left / token.ttl)))
    # It is renewed when a third is left at the latest.
    late = looked_after and share < 25

    if token.renewable or method.makes_tokens:
        kept = "renewed" if token.renewable else "replaced"
        kept += " before it ends" if looked_after else " when it is used"
    else:
        kept, late = "nobody renews it", True

    return Card(
        "Token",
        f"{age(int(left))} left" if left > 0 else "Expired",
        f"of {age(math.ceil(token.ttl))}, {method.name} login, {kept}",
        "warn" if late or left <= 0 else "good",
        share,
    )


def _refresh(details: cabc.Mapping[str, t.Any]) -> Card:
    refresh = details["refresh"]

    if refresh is None:
        return Card("Refresh", "Off", "VAULT_ENABLED is False", "idle")

    success = refresh["last_success_seconds"]
    note = "no success yet" if success is None else f"last success {age(success)} ago"

    if refresh["mode"] == "off":
        return Card("Refresh", "Off", note, "idle")

    where = "by a thread" if refresh["mode"] == "thread" else "by requests"
    note += f", every {refresh['interval_seconds']:g} s {where}"

    if refresh["restarts"]:
        note += f", restarted {refresh['restarts']} times"

    if refresh["errors"]:
        since = age(refresh["failing_seconds"])
        return Card("Refresh", f"Failing for {since}", note, "bad")

    return Card("Refresh", "Works", note, "good")


def _secrets(rows: cabc.Sequence[Row]) -> Card:
    numbers: dict[str, int] = {}

    for row in rows:
        numbers[row.source] = numbers.get(row.source, 0) + 1

    told = [
        f"{number} {source}" if source == "unset" else f"{number} from {source}"
        for source, number in numbers.items()
    ]
    opened = sum(bool(row.rotations) for row in rows)

    if opened:
        told.append(f"{opened} in rotation")

    tone: Tone = "warn" if any(row.tone != "good" for row in rows) else "good"
    return Card("Secrets", str(len(rows)), ", ".join(told) or "none declared", tone)
