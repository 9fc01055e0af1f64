"""Text that fits a width: tables and sentences, before anything colours them."""

from __future__ import annotations

import collections.abc as cabc
import itertools
import re
import textwrap
import typing as t

#: Between two columns.
GAP: t.Final = "  "

#: Characters below which no column is folded: then a row becomes a block.
_LEAST: t.Final = 10

#: What stays in one piece: a quotation, so that it can be copied, and "30 s".
_PIECES: t.Final = re.compile(r"'[^' ]+(?: [^' ]+)+'|\b\d+ [a-z]+\b")

#: Stands for a space inside of it, while lines are broken.
_HOLD: t.Final = "\0"

#: A command at the end of a sentence.
_COMMAND: t.Final = re.compile(r": (flask vault [^:]+)$")

#: Where a reference, a file or a time may be folded, the best first.
_FOLDS: t.Final = (
    re.compile(r"(?<= )|(?=#)"),
    re.compile(r"(?<=[/,;=])|(?<=[0-9])(?=T[0-9])|(?=@)"),
    re.compile(r"(?<=[_.:-])|(?<=[a-z])(?=[A-Z])"),
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
    whole: bool = False,
    show_header: bool = True,
) -> list[Line]:
    """Put cells into aligned columns, each folded where it has to be.

    Where they do not fit at all, each row becomes a block of a line for each cell.

    :param width: in characters; ``None`` folds nothing.
    :param whole: the first column is not folded, since people copy what is in it. It
        gets a line of its own where there is no room beside it.
    """
    cells = [*rows]
    shown = [headers, *cells] if show_header else cells
    widths = _widths(headers, shown, width, may_fold=not whole)

    if widths is not None:
        return [
            line
            for number, row in enumerate(shown)
            for line in _row(headers, row, widths, show_header and number == 0)
        ]

    room = t.cast(int, width)

    if whole:
        rest = _widths(headers[1:], [row[1:] for row in shown], room - len(GAP))

        if rest is not None:
            return [*_in_two_lines(headers, shown, rest, show_header)]

    return [*_blocks(headers, cells, room)]


def _widths(
    headers: cabc.Sequence[str],
    rows: cabc.Sequence[cabc.Sequence[str]],
    width: int | None,
    *,
    may_fold: bool = True,
) -> list[int] | None:
    """The characters of each column; ``None`` when there is no room for them."""
    widths = [
        max((len(line) for row in rows for line in row[i].split("\n")), default=0)
        for i in range(len(headers))
    ]

    if width is None:
        return widths

    least = [
        min(size, max(len(name), _LEAST)) if may_fold else size
        for name, size in zip(headers, widths, strict=True)
    ]

    room = width - len(GAP) * (len(headers) - 1)

    if sum(least) > room:
        return None

    while sum(widths) > room:
        # The widest gives, so that the narrow ones stay as they are.
        give = [i for i, size in enumerate(widths) if size > least[i]]
        widths[max(give, key=widths.__getitem__)] -= 1

    return widths


def _row(
    headers: cabc.Sequence[str],
    cells: cabc.Sequence[str],
    widths: cabc.Sequence[int],
    is_header: bool,
) -> cabc.Iterator[Line]:
    folded = [fold(cell, size) for cell, size in zip(cells, widths, strict=True)]

    for parts in itertools.zip_longest(*folded, fillvalue=""):
        yield [
            Piece(part.ljust(size), name, is_header)
            for part, size, name in zip(parts, widths, headers, strict=True)
        ]


def _in_two_lines(
    headers: cabc.Sequence[str],
    rows: cabc.Iterable[cabc.Sequence[str]],
    widths: cabc.Sequence[int],
    show_header: bool,
) -> cabc.Iterator[Line]:
    for number, (first, *others) in enumerate(rows):
        is_header = show_header and number == 0
        yield [Piece(first, headers[0], is_header)]

        for line in _row(headers[1:], others, widths, is_header):
            yield [Piece("", headers[0]), *line]


def _blocks(
    headers: cabc.Sequence[str],
    rows: cabc.Iterable[cabc.Sequence[str]],
    width: int,
) -> cabc.Iterator[Line]:
    indent = max(map(len, headers))
    room = max(_LEAST, width - indent - len(GAP))

    for number, row in enumerate(rows):
        if number:
            yield []

        for name, cell in zip(headers, row, strict=True):
            for i, part in enumerate(fold(cell, room)):
                label = "" if i else name
                yield [Piece(label.ljust(indent), name, True), Piece(part, name)]


def fold(text: str, width: int) -> list[str]:
    """Break a cell into lines, where a person would break it."""
    lines = []

    for line in text.split("\n"):
        rest = _held(line, width)

        while len(rest) > width:
            at = _fold_of(rest, width)
            lines.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()

        lines.append(rest)

    return [line.replace(_HOLD, " ") for line in lines]


def _fold_of(line: str, width: int) -> int:
    for pattern in _FOLDS:
        # A break after a few letters would leave the rest as long as it was.
        found = [
            match.start()
            for match in pattern.finditer(line)
            if max(1, width // 3) <= match.start() <= width
            or (match.start() == width + 1 and line[width] == " ")
        ]

        if found:
            return found[-1]

    return width


def _held(text: str, width: int) -> str:
    """The text with another sign for the spaces at which it is not broken."""
    return _PIECES.sub(
        lambda match: (
            match[0].replace(" ", _HOLD) if len(match[0]) < width else match[0]
        ),
        text,
    )


def wrap(text: str, width: int) -> str:
    """Break sentences between words. What is to be copied stays in one line.

    That is what stands in quotes, and a command at the end, which gets a line of its
    own.
    """
    command = _COMMAND.search(text)

    if command is not None and len(text) > width:
        return f"{wrap(text[: command.start() + 1], width)}\n    {command[1]}"

    filled = [
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in _held(text, width).split("\n")
    ]
    return "\n".join(filled).replace(_HOLD, " ")


def plain(lines: cabc.Iterable[Line]) -> str:
    """The lines as they are, for who has no colours."""
    return "\n".join(GAP.join(piece.text for piece in line).rstrip() for line in lines)
