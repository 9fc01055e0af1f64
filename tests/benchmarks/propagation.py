"""How long it takes from a write until all workers of two hosts accept the key."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import random
import statistics
import time

from tests.hosts import Host
from tests.hosts import wait_for
from tests.hosts import WORKERS

from .long import IS_LONG
from .servers import BenchServer
from .servers import FIELD
from .table import duration
from .table import Row
from .table import Section

HOSTS = 2
APP = "tests.apps.accepting:create_app()"

#: By the interval in seconds.
ROUNDS = {1: 12, 30: 4}

#: The longest pause between two polls is so many intervals.
JITTER = 1.2

#: Seconds that a poll itself, and the load of this machine, may add to it.
SLACK = 0.5


def measure(server: BenchServer) -> Section:
    """Two gunicorn instances. Each worker notes when it has learned of a version."""
    rows: list[Row] = []

    for interval, rounds in ROUNDS.items():
        what = f"interval {interval} s"

        if interval > 1 and not IS_LONG:
            rows.append(Row(f"{what}: with BENCH_LONG=1, takes minutes", "not run"))
            continue

        taken = _propagate(server, interval, rounds)
        budget = interval * JITTER + SLACK
        rows += [
            Row(f"{what}, {rounds} writes, median", duration(statistics.median(taken))),
            Row(
                f"{what}, {rounds} writes, max",
                duration(max(taken)),
                budget=f"<= {duration(budget)}",
                held=max(taken) <= budget,
            ),
        ]

    return Section(
        f"Propagation: from a write until a worker accepts the key, {HOSTS} hosts of"
        f" {WORKERS} workers\n(gunicorn; the jitter of a poll is a fifth of the"
        " interval)",
        rows,
    )


def _propagate(server: BenchServer, interval: int, rounds: int) -> list[float]:
    """Seconds, for each write and worker."""
    name, taken = server.names[0], []
    server.keep_versions(name, 2 + sum(ROUNDS.values()))

    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(_host(server, interval)) for _ in range(HOSTS)]

        for host in hosts:
            host.await_answer("/")

        # The thread of a worker starts with its first request.
        wait_for(lambda: len(_accepted(hosts)) == HOSTS * WORKERS)

        for number in range(rounds):
            # The round before ends just after a poll.
            time.sleep(random.uniform(0, interval))  # noqa: S311
            began = time.monotonic()
            version = server.write(name, {FIELD: f"{name}-{interval}-{number}"})
            taken += [at - began for at in _await_all(hosts, version, interval)]

    return taken


def _host(server: BenchServer, interval: int) -> Host:
    secrets = {"SIGNING_KEY": {"ref": f"{server.names[0]}#{FIELD}", "keyring": True}}
    return Host(
        APP,
        {
            **server.config(),
            "VAULT_SECRETS": secrets,
            "VAULT_REFRESH_INTERVAL": interval,
        },
    )


def _await_all(
    hosts: cabc.Sequence[Host], version: int, interval: int
) -> cabc.Iterable[float]:
    """When each worker has learned of a version."""
    found: dict[int, float] = {}

    def have_all() -> bool:
        for pid, accepted in _accepted(hosts).items():
            if str(version) in accepted:
                found[pid] = accepted[str(version)]

        return len(found) == HOSTS * WORKERS

    # Seldom, so that the workers are not busy with us.
    wait_for(have_all, interval * JITTER + 20, pause=0.1)
    return found.values()


def _accepted(hosts: cabc.Sequence[Host]) -> dict[int, dict[str, float]]:
    """By worker, when it has learned of which version; of some of the workers."""
    answers = [host.ask("/").json for host in hosts for _ in range(WORKERS)]
    return {answer["pid"]: answer["accepted"] for answer in answers}
