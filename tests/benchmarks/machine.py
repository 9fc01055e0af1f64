"""On what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def facts() -> str:
    """Two lines about the interpreter, the machine and the versions."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("flask-vault", "flask", "werkzeug", "hvac", "cachetools")
    )
    load = ""

    if hasattr(os, "getloadavg"):
        load = f", load {os.getloadavg()[0]:.1f} at the end"

    return (
        f"{platform.python_implementation()} {platform.python_version()} on"
        f" {platform.system()} {platform.machine()}, {_cores()} cores{load}\n{versions}"
    )


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))

    return os.cpu_count() or 1
