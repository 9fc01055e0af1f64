"""Spans of time as a person reads them."""

from __future__ import annotations


def age(seconds: int | None) -> str:
    """An age that a person reads: ``42 s``, ``7 min``, ``5 h``, ``31 d``."""
    if seconds is None:
        return "-"

    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // size} {unit}"

    return f"{seconds // 86_400} d"
