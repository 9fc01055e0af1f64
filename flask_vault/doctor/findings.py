"""What a check found, and what to do about it."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import re
import typing as t

from ..errors import VaultError

Status = t.Literal["pass", "warn", "fail", "skip"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the report. It never holds a secret value.

    :param check: the name of the check.
    :param status: ``skip`` when there was no way to tell.
    :param found: what there is.
    :param cure: what to do about it, in one line; ``None`` when nothing is to be done.
    """

    check: str
    status: Status
    found: str
    cure: str | None = None


def of_error(check: str, error: VaultError, status: Status = "fail") -> Finding:
    """An error as a finding. Its text ends with the cure: after a colon, or else in a
    sentence of its own."""
    found, cure = _split(" ".join(str(error).split()))
    return Finding(check, status, found, cure)


def _split(sentence: str) -> tuple[str, str | None]:
    depth, at = 0, -1

    for index, letter in enumerate(sentence):
        depth += (letter in "([{") - (letter in ")]}")
        after = sentence[index : index + 3]

        if depth == 0 and after[:2] == ": " and after[2:].islower():
            at = index

    if at < 0:
        parts = re.split(r"(?<=[a-z)'\"])\. (?=['\"A-Z])", sentence, maxsplit=1)
        return (f"{parts[0]}.", parts[1]) if len(parts) == 2 else (sentence, None)

    cure = sentence[at + 2 :]
    return f"{sentence[:at]}.", cure[0].upper() + cure[1:]


def worst(findings: cabc.Iterable[Finding]) -> t.Literal["pass", "warn", "fail"]:
    """The gravest status of a report."""
    found = {finding.status for finding in findings}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"
