"""Runs all benchmarks and prints one table. Takes about a minute and a half; with
``BENCH_LONG=1`` also what takes a quarter of an hour."""

from __future__ import annotations

import os
import sys
import time

from . import command_line
from . import health
from . import observing
from . import propagation
from . import reads
from . import refreshing
from . import serving
from . import start
from .machine import facts
from .servers import BenchServer
from .table import format_table
from .table import Section
from .table import verdict

_IN_TURN = (
    start.measure,
    reads.measure,
    serving.measure,
    observing.measure,
    refreshing.measure,
    propagation.measure,
)


def main() -> None:
    began = time.perf_counter()
    _forget_the_shell()
    sections: list[Section] = []

    with BenchServer() as server:
        for measure in _IN_TURN:
            sections.append(measure(server))
            _report(sections[-1])

    sections.append(command_line.measure())
    _report(sections[-1])
    sections.append(health.measure())
    _report(sections[-1])
    print(facts(), format_table(sections), sep="\n\n")
    print(f"\n{verdict(sections)}, in {time.perf_counter() - began:.0f} seconds.")


def _forget_the_shell() -> None:
    """Nothing that is meant for other programs may send a request elsewhere, or make
    one side slower than the other."""
    for name in list(os.environ):
        if name.startswith(("VAULT_", "BAO_", "FLASK_")) or name.lower().endswith(
            "_proxy"
        ):
            del os.environ[name]


def _report(section: Section) -> None:
    """Tell who watches that it goes on; a file gets the table alone."""
    if sys.stderr.isatty():
        print(f"done: {section.title}", file=sys.stderr)


if __name__ == "__main__":
    main()
