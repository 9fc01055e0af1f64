"""Rows of figures, and how they are printed."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

_HEADINGS = ("", "ours", "peer", "compared", "budget", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    :param compared: of ours with the peer's, such as ``0.25 x``.
    :param held: whether the budget is, where there is one.
    """

    what: str
    ours: str
    peer: str = ""
    compared: str = ""
    budget: str = ""
    held: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = {None: "", True: "ok", False: "over"}[self.held]
        return (
            f"  {self.what}", self.ours, self.peer, self.compared, self.budget, verdict
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that were measured together.

    :param title: what is compared with what, and how often.
    """

    title: str
    rows: cabc.Sequence[Row]


def times(what: str, ours: float, peer: float, ratio: float, budget: float) -> Row:
    """A row of two durations whose ratio must not exceed a budget.

    :param ours: seconds.
    :param peer: seconds.
    :param budget: infinity for none.
    """
    has_budget = budget != float("inf")
    return Row(
        what,
        duration(ours),
        duration(peer),
        f"{ratio:.2f} x",
        f"<= {budget:.2f} x" if has_budget else "",
        ratio <= budget if has_budget else None,
    )


def at_most(what: str, count: int, budget: int) -> Row:
    """A row of one number that must not exceed a budget."""
    return Row(what, str(count), budget=f"<= {budget}", held=count <= budget)


def duration(seconds: float) -> str:
    """Seconds for people, in the unit that leaves a number from 1 to 9999."""
    for unit, name in ((1e-9, "ns"), (1e-6, "us")):
        if abs(seconds) < 10_000 * unit and abs(seconds) < unit * 1_000 * 2:
            return f"{seconds / unit:.0f} {name}"

    return f"{seconds * 1e3:.2f} ms"


def format_table(sections: cabc.Sequence[Section]) -> str:
    """The table, in plain text."""
    cells = [row.cells for section in sections for row in section.rows]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    lines = [_line(_HEADINGS, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]

    for section in sections:
        lines += [section.title, *(_line(row.cells, widths) for row in section.rows)]
        lines.append("")

    return "\n".join(lines).rstrip()


def _line(cells: cabc.Sequence[str], widths: cabc.Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
    )
    return "  ".join([cells[0].ljust(widths[0]), *others]).rstrip()
