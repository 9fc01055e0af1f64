"""What it costs to ask again for what has not changed."""

from __future__ import annotations

import gc
import pathlib
import resource
import sys
import time

from flask_vault import FlaskVault
from flask_vault.extension import state_of
from flask_vault.state import AppState

from .long import IS_LONG
from .servers import BenchServer
from .table import duration
from .table import Row
from .table import Section

REFRESHES = 10_000 if IS_LONG else 500
#: Before those that count: connections are opened and caches filled.
WARM_UP = 50
CPU, GROWTH = 0.001, 1_000_000


def measure(server: BenchServer) -> Section:
    """Refreshes by hand, in this thread: of values, and of key rings."""
    paths = len(server.names)
    rows: list[Row] = []

    for what, keyring in (("values", False), ("key rings", True)):
        cpu, growth = _refresh(_app(server, keyring=keyring), paths)
        rows += [
            Row(
                f"{what}, CPU per path",
                duration(cpu),
                budget=f"<= {duration(CPU)}",
                held=cpu <= CPU,
            ),
            Row(
                f"{what}, growth of the process",
                f"{growth / 1e3:.0f} kB",
                budget=f"<= {GROWTH / 1e3:.0f} kB",
                held=growth <= GROWTH,
            ),
        ]

    return Section(
        f"Refreshes of {paths} paths that have not changed"
        f"\n({REFRESHES} after {WARM_UP} that do not count"
        f"{'' if IS_LONG else '; 10000 with BENCH_LONG=1'}; CPU of this process, which"
        " sends the requests)",
        rows,
    )


def _app(server: BenchServer, *, keyring: bool) -> AppState:
    app = server.app(
        len(server.names),
        VAULT_REFRESH_MODE="off",
        VAULT_SECRETS={
            key: {"ref": ref, "keyring": keyring}
            for key, ref in server.entries(len(server.names)).items()
        },
    )
    FlaskVault(app)
    return state_of(app)


def _refresh(state: AppState, paths: int) -> tuple[float, int]:
    """Seconds of CPU per path, and bytes that are there more than before."""
    for _ in range(WARM_UP):
        _check(state)

    gc.collect()
    memory, began = _memory(), time.process_time()

    for _ in range(REFRESHES):
        _check(state)

    taken = time.process_time() - began
    gc.collect()
    return taken / REFRESHES / paths, max(0, _memory() - memory)


def _check(state: AppState) -> None:
    report = state.refresh()

    if report.errors or report.changed:
        raise AssertionError("A refresh of unchanged paths has changed something.")


def _memory() -> int:
    """Bytes of this process; where they are not told, the most there ever were."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    return int(pages) * resource.getpagesize()
