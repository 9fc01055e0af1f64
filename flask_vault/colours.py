"""What rich adds to the text of the commands. It is imported on a terminal alone."""

from __future__ import annotations

import collections.abc as cabc
import io
import re
import typing as t

from rich.console import Console
from rich.text import Text

from .layout import GAP
from .layout import Line
from .layout import Piece

#: Columns whose words have a colour. A path may hold the same words.
_TOLD: t.Final = frozenset(
    {"keys", "outcome", "source", "state", "status", "opened by"}
)

_STYLES: t.Final = {
    "green": ("pass", "vault", "signing", "done", "ok", "created", "good"),
    "yellow": ("warn", "pending", "cache", "env", "default", "waiting", "joined"),
    "red": ("fail", "failed", "unset", "missing", "denied", "error", "nothing"),
    "dim": ("skip", "retired", "exists"),
}

_WORDS: t.Final = {
    style: re.compile(rf"\b(?:{'|'.join(words)})\b") for style, words in _STYLES.items()
}


def paint(lines: cabc.Iterable[Line], width: int) -> str:
    """The lines of a table with colours, as the terminal wants them."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False
    )

    with console.capture() as capture:
        for line in lines:
            text = Text(GAP).join(_styled(piece) for piece in line)
            text.rstrip()
            console.print(text, soft_wrap=True)

    return capture.get().removesuffix("\n")


def _styled(piece: Piece) -> Text:
    if piece.is_header:
        return Text(piece.text, "bold")

    text = Text(piece.text)

    if piece.text.strip() in {"-", "********"}:
        text.stylize("dim")
    elif piece.column in _TOLD:
        for style, words in _WORDS.items():
            text.highlight_regex(words, style)

    return text
