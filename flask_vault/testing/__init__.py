"""What a test suite needs to talk to a real server: the server itself, a cluster of
several, and a proxy that misbehaves on request. :mod:`flask_vault.testing.plugin` makes
pytest fixtures of the server and the proxy."""

from __future__ import annotations

import importlib
import typing as t

if t.TYPE_CHECKING:
    from .cluster import DevCluster
    from .proxy import FaultProxy
    from .server import DevServer

__all__ = ["DevCluster", "DevServer", "FaultProxy"]

_HOMES = {
    "DevCluster": ".cluster",
    "DevServer": ".server",
    "FaultProxy": ".proxy",
}


def __getattr__(name: str) -> object:
    # Not imported before it is used: pytest loads the plugin in every run, also of
    # suites that need neither.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    return getattr(importlib.import_module(_HOMES[name], __name__), name)
