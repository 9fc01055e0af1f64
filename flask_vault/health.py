"""``/vault/health`` for a load balancer, answered from memory."""

from __future__ import annotations

import hmac
import json
import time
import typing as t

from flask import Blueprint
from flask import request
from flask import Response

from . import status_page
from .client import VaultClient
from .resolve import Outcome
from .settings import Settings
from .state import AppState


def new_blueprint(state: AppState) -> Blueprint:
    """The routes ``health`` and ``health/live`` below the configured prefix.

    ``health`` is 503 only for a fault of this host: the secrets were never loaded, or
    the refresh thread is dead and cannot be started. When Vault is down, every host
    would fail at once, and a load balancer that empties its pool makes one outage into
    two; so that is a 200 with ``warn``.

    ``health/live`` is 200 as long as the process answers.

    A browser gets a page, where the details are to be had.
    """
    settings = state.settings
    has_page = settings.health_details != "never"

    if has_page:
        status_page.prepare()

    blueprint = Blueprint(
        settings.health_blueprint,
        __name__,
        url_prefix=settings.health_url_prefix or None,
    )

    @blueprint.get("/health")
    def health() -> Response:
        status = status_of(state)
        code = 503 if status == "fail" else 200
        as_page = has_page and status_page.is_wanted()
        body: dict[str, t.Any] = {"status": status}

        if _may_see_details(settings, as_page):
            body.update(details_of(state))
        elif as_page:
            return status_page.question(status)

        return status_page.page(state, body, code) if as_page else _answer(body, code)

    @blueprint.get("/health/live")
    def live() -> Response:
        return _answer({"status": "pass"}, 200)

    return blueprint


def status_of(state: AppState) -> str:
    """``pass``, ``warn`` or ``fail``, the words of draft-inadarei-api-health-check."""
    if not state.loaded or state.refresher.is_dead():
        return "fail"

    refreshes = state.refresher.mode != "off"

    if state.refresher.freshness.errors or (refreshes and state.is_stale):
        return "warn"

    if state.client.failing or any(
        outcome.error or outcome.source == "cache"
        for outcome in state.outcomes.values()
    ):
        return "warn"

    return "pass"


def details_of(state: AppState) -> dict[str, t.Any]:
    """What an operator may see: names, versions and ages.

    Never a value, an address, a path or the text of an exception (CWE-209).
    """
    enabled = state.client.settings.enabled
    return {
        "enabled": enabled,
        "loaded": state.loaded,
        "stale": state.client.failing,
        "refresh": _refresh_of(state) if enabled else None,
        "secrets": {
            key: {
                "source": outcome.source,
                "version": outcome.version,
                "age_seconds": age_of(outcome, state.client) if enabled else None,
                "error": type(outcome.error).__name__ if outcome.error else None,
                **ring_of(state, key),
            }
            for key, outcome in state.outcomes.items()
        },
    }


def ring_of(state: AppState, key: str) -> dict[str, t.Any]:
    """What may be said of a key ring: versions and states, and when it changes.

    Nothing for a key without one.
    """
    ring = state.live.rings.get(key)

    if ring is None:
        return {}

    change = ring.next_change
    left = None if change is None else (change - state.client.now()).total_seconds()
    return {
        "keys": [{"version": k.version, "state": k.state} for k in ring.accepted],
        "next_change_seconds": None if left is None else max(0, round(left)),
    }


def _refresh_of(state: AppState) -> dict[str, t.Any]:
    refresher = state.refresher
    known = refresher.freshness
    return {
        "mode": refresher.mode,
        "interval_seconds": state.settings.refresh_interval,
        "last_success_seconds": _since(known.last_success),
        "last_fresh_seconds": _since(known.last_fresh),
        "stale": state.is_stale,
        "failing_seconds": _since(known.failing_since),
        "errors": sorted({type(error).__name__ for error in known.errors.values()}),
        "restarts": known.restarts,
    }


def _since(at: float | None) -> int | None:
    return None if at is None else max(0, int(time.monotonic() - at))


def age_of(outcome: Outcome, client: VaultClient) -> int | None:
    """Whole seconds since the version was made, by Vault's clock."""
    if outcome.created is None:
        return None

    return max(0, int((client.now() - outcome.created).total_seconds()))


def _may_see_details(settings: Settings, as_page: bool) -> bool:
    if settings.health_details != "token":
        return settings.health_details == "always"

    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    expected = settings.health_token or ""

    if as_page and scheme.lower() == "basic":
        return status_page.has_password(expected)

    return scheme.lower() == "bearer" and hmac.compare_digest(
        given.strip().encode(), expected.encode()
    )


def _answer(body: dict[str, t.Any], status: int) -> Response:
    response = Response(
        json.dumps(body), status=status, mimetype="application/health+json"
    )
    response.headers["Cache-Control"] = "no-store"
    response.vary.add("Accept")
    return response
