"""What it costs to read a secret that is in memory."""

from __future__ import annotations

import collections.abc as cabc
import threading
import timeit
import typing as t

import cachetools
import hvac
from flask import current_app

import flask_vault

from .pairs import Side
from .pairs import take_turns
from .servers import BenchServer
from .servers import FIELD
from .servers import MOUNT
from .servers import PREFIX
from .table import Section
from .table import times

ROUNDS = 15
CALLS = 20_000
REQUESTS = 20

_CONFIG = "current_app.config"
_CACHE = "a locked TTLCache"
_HVAC = "hvac uncached"
_EXTENSION = "vault.client.get_secret()"
_FUNCTION = "flask_vault.get_secret()"
_KEPT = "get_secret() of a client kept"


def measure(server: BenchServer) -> Section:
    """A hit inside an app context, against other ways to come by the same value."""
    app = server.app(1)
    vault = flask_vault.FlaskVault()
    vault.init_app(app)
    name = server.names[0]
    app.config["K"] = app.config[name.upper()]

    with app.app_context():
        names = {
            "current_app": current_app,
            "vault": vault,
            "flask_vault": flask_vault,
            "client": vault.client,
            "cached": _locked_cache(name, app.config["K"]),
            "uncached": _uncached(server, name),
        }
        calls = {
            _CONFIG: ('current_app.config["K"]', CALLS),
            _EXTENSION: (f'vault.client.get_secret("{name}", "{FIELD}")', CALLS),
            _FUNCTION: (f'flask_vault.get_secret("{name}", "{FIELD}")', CALLS),
            _KEPT: (f'client.get_secret("{name}", "{FIELD}")', CALLS),
            _CACHE: (f'cached("{name}", "{FIELD}")', CALLS),
            _HVAC: (f'uncached("{name}", "{FIELD}")', REQUESTS),
        }

        for code, _ in calls.values():
            timeit.timeit(
                f"assert {code} == current_app.config['K']", number=1, globals=names
            )

        runs = take_turns(
            {what: _per_call(*call, names) for what, call in calls.items()}, ROUNDS
        )

    rows = []

    for ours in (_EXTENSION, _FUNCTION, _KEPT):
        for peer, budget in ((_CONFIG, 1.5), (_CACHE, 1.0), (_HVAC, None)):
            mine, its = runs.best(ours), runs.best(peer)
            rows.append(times(f"{ours} vs {peer}", mine, its, mine / its, budget))

    return Section(
        'get_secret("path", "field"), a hit inside an app context'
        f"\n(per call; best of {ROUNDS} interleaved rounds of {CALLS} calls, of hvac"
        f" {REQUESTS})",
        rows,
    )


def _per_call(code: str, calls: int, names: dict[str, t.Any]) -> Side:
    timer = timeit.Timer(code, globals=names)
    return lambda: timer.timeit(calls) / calls


def _locked_cache(name: str, value: str) -> cabc.Callable[[str, str], str]:
    """The leanest form of the usual advice; ``@cached(..., lock=...)`` costs more."""
    cache: cachetools.TTLCache[tuple[str, str], str]
    cache = cachetools.TTLCache(maxsize=128, ttl=300)
    cache[name, FIELD] = value
    lock = threading.Lock()

    def cached(path: str, field: str) -> str:
        with lock:
            return cache[path, field]

    return cached


def _uncached(server: BenchServer, name: str) -> cabc.Callable[[str, str], str]:
    role_id, secret_id = server.role
    client = hvac.Client(url=server.address, token="")
    client.auth.approle.login(role_id, secret_id)

    def uncached(path: str, field: str) -> str:
        answer = client.secrets.kv.v2.read_secret_version(
            f"{PREFIX}/{path}", mount_point=MOUNT, raise_on_deleted_version=True
        )
        return str(answer["data"]["data"][field])

    return uncached
