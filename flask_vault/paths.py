"""Which paths may be sent to a server."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_control_character(text: str) -> bool:
    """Whether a text holds a character that no path, field or header may hold."""
    return _CONTROL.search(text) is not None


def problem_of(path: str) -> str | None:
    """What is wrong with a path that an HTTP client or Vault would take for another.

    Clients resolve ``..`` on their own, so ``../sys/mounts`` would read another
    endpoint (measured with hvac 2.4.0).

    :param path: segments joined by ``/``, without a leading or trailing slash.
    :return: the end of a sentence that begins with the path, or ``None``.
    """
    if has_control_character(path):
        return "holds a control character: write it in printable characters."

    for segment in path.split("/"):
        if not segment:
            return "has an empty segment: write single slashes, none at the end."

        if segment in {".", ".."}:
            return f"holds {segment!r}: write the path out, from the mount down."

        if segment != segment.strip():
            return "has white space around a segment: remove it."

    return None
