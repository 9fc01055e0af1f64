"""Rows of figures, and how they are printed."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

_HEADINGS = ("", "ours", "peer", "compared", "budget", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    :param compared: of ours with the peer's, such as ``0.250 x``.
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
        held = {None: "", True: "ok", False: "over"}[self.held]
        figures = (self.ours, self.peer, self.compared, self.budget)
        return (f"  {self.what}", *figures, held)


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that were measured together.

    :param title: what is compared with what, and how often.
    """

    title: str
    rows: cabc.Sequence[Row]


def times(
    what: str, ours: float, peer: float, ratio: float, budget: float | None = None
) -> Row:
    """A row of two durations, whose ratio must not exceed a budget if there is one.

    :param ours: seconds.
    :param peer: seconds.
    """
    return Row(
        what,
        duration(ours),
        duration(peer),
        f"{ratio:.{3 if ratio > 0.01 else 5}f} x",
        "" if budget is None else f"<= {budget:.3f} x",
        None if budget is None else ratio <= budget,
    )


def at_most(what: str, count: int, budget: int) -> Row:
    """A row of one number that must not exceed a budget."""
    return Row(what, str(count), budget=f"<= {budget}", held=count <= budget)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if abs(seconds) < 10e-6:
        return f"{seconds * 1e9:.0f} ns"

    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.0f} us"

    if abs(seconds) < 10:
        return f"{seconds * 1e3:.2f} ms"

    return f"{seconds:.1f} s"


def verdict(sections: cabc.Iterable[Section]) -> str:
    """How many of the budgets are held."""
    held = [row.held for section in sections for row in section.rows if row.budget]
    return f"{held.count(True)} of {len(held)} budgets held"


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
