"""Apps in each state that the status page tells of, for pictures and for looks.

They start on a real server. What would take days to come about is put into their
memory: ages, a key ring in the middle of its life, a refresh that fails.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import time
import typing as t

from flask import Flask

from flask_vault import FlaskVault
from flask_vault.entries import Reference
from flask_vault.errors import SecretFieldError
from flask_vault.errors import VaultConnectionError
from flask_vault.errors import VaultError
from flask_vault.extension import state_of
from flask_vault.keyring import compute
from flask_vault.keyring import Version
from flask_vault.state import AppState
from flask_vault.vault.tokens import Token

if t.TYPE_CHECKING:
    from flask_vault.testing.plugin import VaultMount

#: In every value, so that none can hide on a page.
CANARY = "canary-8c1d"

OPERATION = "6f1c2b0a9d3e4f5a8b7c6d5e4f3a2b1c"

LONG = "A_KEY_WITH_A_NAME_THAT_IS_LONGER_THAN_ANYBODY_WOULD_EVER_WANT_TO_TYPE"

HOUR, DAY = 3600.0, 86_400.0


def journal(state: str, **more: object) -> dict[str, object]:
    """The reserved field of a document whose password is being rotated."""
    record = {
        "op": OPERATION,
        "kind": "database",
        "state": state,
        "pending": {"password": f"{CANARY}-pending"},
        "previous": {"password": f"{CANARY}-previous"},
        "attempt": f"{CANARY}-attempt",
        "backup": f"{CANARY}-backup",
        "rejected": 0,
        **more,
    }
    return {"v": 1, "password": record}


def passing(mount: VaultMount) -> Flask:
    """All is well: a key on its way to sign, and a password that is being rotated."""
    return _start(mount)


def stale(mount: VaultMount) -> Flask:
    """The server is gone for a while, and longer than the propagation window."""
    app = _start(mount)
    state = state_of(app)
    fail(state, VaultConnectionError("Gone."), for_seconds=4 * HOUR)
    return app


def failing(mount: VaultMount) -> Flask:
    """One document is no good any more, and another was never there."""
    app = _start(
        mount,
        GEOIP_KEY={"ref": "geoip#key", "default": f"{CANARY}-default"},
        SENTRY_DSN={"ref": "sentry#dsn", "required": False},
    )
    state = state_of(app)
    fail(state, SecretFieldError("It has no field."), for_seconds=90, at="stripe")
    age_document(state, "SQLALCHEMY_DATABASE_URI", HOUR)
    return app


def broken(mount: VaultMount) -> Flask:
    """The secrets of this process were never loaded."""
    app = _start(mount)
    state_of(app).loaded = False
    return app


def disabled(mount: VaultMount) -> Flask:
    """As in a suite that runs offline."""
    return _made(
        {"VAULT_ENABLED": False},
        {
            "SECRET_KEY": {"ref": "flask#key", "keyring": True, "default": CANARY},
            "STRIPE_API_KEY": {"ref": "stripe#api_key", "default": CANARY},
            "SENTRY_DSN": {"ref": "sentry#dsn", "required": False},
        },
    )


def many(mount: VaultMount) -> Flask:
    """Names that fit nowhere, and no key ring."""
    for number in range(12):
        mount.write(f"service{number}", {"key": CANARY})

    return _made(
        mount.config(),
        {
            **{f"SERVICE{n}_KEY": f"service{n}#key" for n in range(11)},
            LONG: "service11#key",
        },
    )


SCENES: cabc.Mapping[str, cabc.Callable[[VaultMount], Flask]] = {
    scene.__name__: scene for scene in (passing, stale, failing, broken, disabled, many)
}


# --- parts ---------------------------------------------------------------------------


def _start(mount: VaultMount, **more: object) -> Flask:
    for number in range(1, 4):
        mount.write("flask", {"secret_key": f"{CANARY}-{number}", "jwt": CANARY})

    mount.write(
        "database",
        {
            **{"username": "shop", "password": CANARY, "host": "db"},
            "_rotation": journal("APPLYING"),
        },
    )
    mount.write("stripe", {"api_key": CANARY})
    mount.write("mail", {"password": CANARY})
    app = _made(
        mount.config(),
        {
            "SECRET_KEY": {
                **{"ref": "flask#secret_key", "keyring": True, "rotate": "token"}
            },
            "JWT_SECRET_KEY": {
                **{"ref": "flask#jwt", "keyring": True, "rotate": "token"}
            },
            "SQLALCHEMY_DATABASE_URI": {
                "ref": "database",
                "template": "postgresql://{username}:{password}@{host}/shop",
                "rotate": {"kind": "database", "field": "password"},
            },
            "STRIPE_API_KEY": "stripe#api_key",
            "MAIL_PASSWORD": f"/{mount.name}/mail#password",
            **more,
        },
    )
    state = state_of(app)
    _put_ring(state, "SECRET_KEY", retire_after=31 * DAY, ages=(90 * DAY, 9 * DAY, 61))
    _put_ring(state, "JWT_SECRET_KEY", retire_after=30 * DAY, ages=(58 * DAY, 23 * DAY))
    age_document(state, "SQLALCHEMY_DATABASE_URI", 45)
    age_document(state, "STRIPE_API_KEY", 212 * DAY)
    age_document(state, "MAIL_PASSWORD", 40 * DAY)
    return app


def _made(config: cabc.Mapping[str, object], secrets: object) -> Flask:
    app = Flask("shop")
    app.config.from_mapping(
        config,
        VAULT_HEALTH_DETAILS="always",
        VAULT_REFRESH_MODE="thread",
        VAULT_SECRETS=secrets,
    )
    FlaskVault(app)
    state = state_of(app)
    # Nothing of what is put into its memory is to be set right.
    state.refresher.stop()

    if state.settings.enabled:
        now = time.monotonic()
        state.client.transport._session.token = Token(
            CANARY, ours=True, ttl=HOUR, renewable=True, obtained=now - 14 * 60
        )
        note(state, last_success=now - 12, last_fresh=now - 12)

    return app


def note(state: AppState, **facts: t.Any) -> None:
    known = state.refresher.freshness
    state.refresher.freshness = dataclasses.replace(known, **facts)


def fail(
    state: AppState, error: VaultError, *, for_seconds: float, at: str = "flask"
) -> None:
    since = time.monotonic() - for_seconds
    note(state, failing_since=since, errors={_path(state, at): error})

    if isinstance(error, VaultConnectionError):
        note(state, last_success=since - 5, last_fresh=since - 5)


def _path(state: AppState, path: str) -> str:
    return state.client.catalog.location(Reference.parse(path)).path


def age_document(state: AppState, key: str, seconds: float) -> None:
    created = state.client.now() - datetime.timedelta(seconds=seconds)
    outcome = state.live.outcomes[key]
    place = state.client.catalog.location_of(outcome.entry)
    held = state.live.applied[place]
    document = dataclasses.replace(held.document, created=created)
    held = dataclasses.replace(held, document=document)
    state.live.applied = {**state.live.applied, place: held}
    state.live.outcomes = {
        **state.live.outcomes,
        key: dataclasses.replace(outcome, created=created),
    }


def _put_ring(
    state: AppState, key: str, *, retire_after: float, ages: cabc.Sequence[float]
) -> None:
    now = state.client.now()
    ring = compute(
        [
            Version(
                number, now - datetime.timedelta(seconds=age), f"{CANARY}-{key}{number}"
            )
            for number, age in enumerate(ages, start=1)
        ],
        now,
        propagation_window=datetime.timedelta(seconds=120),
        retire_after=datetime.timedelta(seconds=retire_after),
    )
    state.live.rings = {**state.live.rings, key: ring}
    age_document(state, key, ages[-1])
    outcome = dataclasses.replace(state.live.outcomes[key], version=len(ages))
    state.live.outcomes = {**state.live.outcomes, key: outcome}
