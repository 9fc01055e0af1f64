"""The named steps of a rotation, at each of which a test can make it fail."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import os
import signal
import typing as t

#: In the order in which a rotation comes by. Not each kind comes by each of them.
STEPS: t.Final = (
    "started",
    "intended",
    "created",
    "prepared",
    "backed up",
    "applying",
    "connected",
    "fenced",
    "before commit",
    "committed",
    "applied",
    "verified",
    "promoted",
    "revoked",
    "done",
)

#: Environment variable with the name of the step at which the process kills itself.
CRASH_VARIABLE: t.Final = "FLASK_VAULT_CRASH_AT"

_seams: list[cabc.Callable[[str], None]] = []


def reach(step: str) -> None:
    """Say that a step is done. Nothing happens, except in a test."""
    if os.environ.get(CRASH_VARIABLE) == step:
        os.kill(os.getpid(), signal.SIGKILL)

    for seam in tuple(_seams):
        seam(step)


@contextlib.contextmanager
def seam(at_step: cabc.Callable[[str], None]) -> cabc.Iterator[None]:
    """Call a function at each step, in this process: to raise an error, or to wait."""
    _seams.append(at_step)

    try:
        yield
    finally:
        _seams.remove(at_step)
