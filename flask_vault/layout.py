"""Text that fits a width: tables and sentences, before anything colours them."""

from __future__ import annotations

import collections.abc as cabc
import re
import textwrap
import typing as t

#: Between two columns.
GAP: t.Final = "  "

#: Characters below which no column is folded: then a row becomes a block.
_LEAST: t.Final = 12

#: Characters to which the names of a block are indented at most.
_BLOCK: t.Final = 10

#: A word that stays in one piece, so that it can be copied.
_QUOTED: t.Final = re.compile(r"'[^' ]+(?: [^' ]+)+'")

#: A command at the end of a sentence.
_COMMAND: t.Final = re.compile(r": (flask vault [^:]+)$")

#: Where a reference, a file or a time may be folded, the best first.
_FOLDS: t.Final = (
    re.compile(r"(?<= )|(?=#)"),
    re.compile(r"(?<=[/,;=])|(?<=[0-9])(?=T[0-9])|(?=@)"),
    re.compile(r"(?<=[_.:-])"),
)


class Piece(t.NamedTuple):
    """A part of a line, in one column."""

    text: str
    #: The column that it is of.
    column: str
    is_header: bool = False


Line = list[Piece]


def lay_out(
    headers: cabc.Sequence[str],
    rows: cabc.Iterable[cabc.Sequence[str]],
    width: int | None = None,
    *,
    whole: cabc.Container[str] = (),
    show_header: bool = True,
) -> list[Line]:
    """Put cells into aligned columns, each folded where it has to be.

    :param width: in characters; ``None`` folds nothing.
    :param whole: columns that are not folded, since people copy what is in them. When
        there is no room for that, each row becomes a block of one line for each cell.
    """
    cells = [list(row) for row in rows]
    shown = [list(headers), *cells] if show_header else cells
    widths = [
        max((len(line) for row in shown for line in row[i].split("\n")), default=0)
        for i in range(len(headers))
    ]
    least = [
        size if name in whole else min(size, max(len(name), _LEAST))
        for name, size in zip(headers, widths, strict=True)
    ]
    room = None if width is None else width - len(GAP) * (len(headers) - 1)

    if room is not None and sum(least) > room:
        return _blocks(headers, cells, t.cast(int, width), whole)

    while room is not None and sum(widths) > room:
        # The widest gives, so that the narrow ones stay as they are.
        spare = [size - low for size, low in zip(widths, least, strict=True)]
        widest = max(
            (i for i in range(len(widths)) if spare[i]), key=widths.__getitem__
        )
        widths[widest] -= 1

    lines = []

    for number, row in enumerate(shown):
        is_header = show_header and number == 0
        folded = [fold(c, size) for c, size in zip(row, widths, strict=True)]

        for i in range(max(map(len, folded))):
            parts = [part[i] if i < len(part) else "" for part in folded]
            lines.append(
                [
                    Piece(part.ljust(size), name, is_header)
                    for part, size, name in zip(parts, widths, headers, strict=True)
                ]
            )

    return lines


def _blocks(
    headers: cabc.Sequence[str],
    rows: cabc.Iterable[cabc.Sequence[str]],
    width: int,
    whole: cabc.Container[str],
) -> list[Line]:
    indent = max(*map(len, headers), _BLOCK)
    room = max(_LEAST, width - indent - len(GAP))
    lines: list[Line] = []

    for row in rows:
        if lines:
            lines.append([])

        for name, cell in zip(headers, row, strict=True):
            for i, part in enumerate([cell] if name in whole else fold(cell, room)):
                label = "" if i else name
                lines.append(
                    [Piece(label.ljust(indent), name, True), Piece(part, name)]
                )

    return lines


def fold(text: str, width: int) -> list[str]:
    """Break a cell into lines, where a person would break it."""
    lines = []

    for line in text.split("\n"):
        while len(line) > width:
            at = _fold_of(line, width)
            lines.append(line[:at].rstrip())
            line = line[at:].lstrip()

        lines.append(line)

    return lines


def _fold_of(line: str, width: int) -> int:
    for pattern in _FOLDS:
        # A break after a few letters would leave the rest as long as it was.
        found = [
            match.start()
            for match in pattern.finditer(line)
            if width // 3 <= match.start() <= width
            or (match.start() == width + 1 and line[width] == " ")
        ]

        if found:
            return found[-1]

    return width


def wrap(text: str, width: int) -> str:
    """Break sentences between words. What is to be copied stays in one line.

    That is what stands in quotes, and a command at the end, which gets a line of its
    own.
    """
    command = _COMMAND.search(text)

    if command is not None and len(text) > width:
        return f"{wrap(text[: command.start() + 1], width)}\n    {command[1]}"

    held = _QUOTED.sub(lambda match: match[0].replace(" ", "\0"), text)
    return "\n".join(
        textwrap.fill(
            line, width, break_long_words=False, break_on_hyphens=False
        ).replace("\0", " ")
        for line in held.split("\n")
    )


def plain(lines: cabc.Iterable[Line]) -> str:
    """The lines as they are, for who has no colours."""
    return "\n".join(GAP.join(piece.text for piece in line).rstrip() for line in lines)
