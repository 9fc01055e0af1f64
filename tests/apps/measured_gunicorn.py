"""The configuration of a gunicorn whose workers share their metrics."""

from __future__ import annotations

import typing as t

from prometheus_client import multiprocess


def child_exit(server: t.Any, worker: t.Any) -> None:
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
