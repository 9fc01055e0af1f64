"""How long an app takes to get its secrets at start-up."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import gc
import time

import hvac
from flask import Flask

from flask_vault import FlaskVault

from .pairs import take_turns
from .servers import BenchServer
from .servers import FIELD
from .servers import MOUNT
from .servers import PREFIX
from .servers import ProxyProcess
from .table import at_most
from .table import Row
from .table import Section
from .table import times

PATHS = (5, 20)
DELAY = 0.005
ROUNDS = 25
CONNECTIONS = 8

_OURS, _TOLD, _LOOP = "ours", "told the KV version", "loop"


def measure(server: BenchServer) -> Section:
    """Start-up with AppRole, on a server nearby and on one that is some way off."""
    rows: list[Row] = []

    for delay in (0.0, DELAY):
        for paths in PATHS:
            rows += _compare(server, paths, delay)

    return Section(
        "Start-up with AppRole: init_app of a fresh app vs a plain hvac loop with a new"
        f" client\n(hvac is imported before; median of {ROUNDS} pairs)",
        rows,
    )


def _compare(server: BenchServer, paths: int, delay: float) -> list[Row]:
    with contextlib.ExitStack() as stack:
        proxy: ProxyProcess | None = None
        address = server.address

        if delay:
            proxy = stack.enter_context(ProxyProcess(server.address, delay))
            address = proxy.address

        ours = _Contestant(server, paths, address, _init_app, proxy)
        told = _Contestant(server, paths, address, _init_app, proxy, VAULT_KV_VERSION=2)
        loop = _Contestant(server, paths, address, _hvac_loop(server, address, paths))
        runs = take_turns({_LOOP: loop, _OURS: ours, _TOLD: told}, ROUNDS)

    what = f"{paths} paths, {delay * 1e3:.0f} ms delay"
    budget = 1 / 3 if delay and paths == max(PATHS) else None
    rows = [
        times(
            what if name == _OURS else f"{what}, VAULT_KV_VERSION = 2",
            runs.median(name),
            runs.median(_LOOP),
            runs.ratio(name, _LOOP),
            budget,
        )
        for name in (_OURS, _TOLD)
    ]

    if proxy is not None:
        # The login, and the question for the version of the mount where it is not told.
        rows += [
            at_most("  requests", ours.requests, paths + 2),
            at_most("  requests, VAULT_KV_VERSION = 2", told.requests, paths + 1),
            at_most("  connections at once", ours.connections, CONNECTIONS),
        ]

    return rows


class _Contestant:
    """Has a fresh app load its secrets, and keeps the worst that the proxy counted."""

    def __init__(
        self,
        server: BenchServer,
        paths: int,
        address: str,
        load: cabc.Callable[[Flask], None],
        proxy: ProxyProcess | None = None,
        **config: object,
    ) -> None:
        self.requests = 0
        self.connections = 0
        self._server = server
        self._paths = paths
        self._config = {"VAULT_ADDR": address, **config}
        self._load = load
        self._proxy = proxy

    def __call__(self) -> float:
        if self._proxy is not None:
            self._proxy.settle()

        app = self._server.app(self._paths, **self._config)
        began = time.perf_counter()
        self._load(app)
        taken = time.perf_counter() - began
        self._check(app)

        if self._proxy is not None:
            stats = self._proxy.stats()
            self.requests = max(self.requests, stats["count"])
            self.connections = max(self.connections, stats["max_connections"])

        # The client is part of a cycle, and holds connections for as long as it lives.
        del app
        gc.collect()
        return taken

    def _check(self, app: Flask) -> None:
        for name in self._server.names[: self._paths]:
            if not str(app.config[name.upper()]).startswith(f"{name}-"):
                raise AssertionError(f"{name.upper()} was not loaded.")


def _init_app(app: Flask) -> None:
    FlaskVault().init_app(app)


def _hvac_loop(
    server: BenchServer, address: str, paths: int
) -> cabc.Callable[[Flask], None]:
    """What one writes without Flask-Vault."""
    role_id, secret_id = server.role

    def load(app: Flask) -> None:
        client = hvac.Client(url=address, token="")
        client.auth.approle.login(role_id, secret_id)

        for name in server.names[:paths]:
            answer = client.secrets.kv.v2.read_secret_version(
                f"{PREFIX}/{name}", mount_point=MOUNT, raise_on_deleted_version=True
            )
            app.config[name.upper()] = answer["data"]["data"][FIELD]

    return load
