"""Shows how far a rotation is, while it runs."""

from __future__ import annotations

import sys
import typing as t

import click

from .console import has_cursor
from .rotation.tasks import Progress
from .rotation.tasks import Task

if t.TYPE_CHECKING:
    from .bars import Bars

#: Characters of a full bar.
_BAR: t.Final = 24


class Reporter:
    """Shows steps and waits: a bar on a terminal, else a line for each step.

    Where rich is installed, there is a bar for each wait of several.

    :param quiet: shows nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = sys.stderr.isatty() and has_cursor()
        self._bars = _new_bars() if self._bar and not quiet else None
        self._drawn = False
        self._waits: dict[Task, float] = {}

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return

        task, left = progress.task, progress.remaining

        if left is None:
            self._end_line()
            self._waits.pop(task, None)
            operation = (progress.operation or "")[:8]

            if self._bars is not None:
                self._bars.step(task.name, progress.step, operation)
                return

            click.echo(f"{task.name}: {progress.step} ({operation})", err=True)
            return

        longest = self._waits.setdefault(task, max(left, 0.001))

        if self._bars is not None:
            self._bars.wait(task.name, left, longest)
        elif self._bar:
            done = round(_BAR * (1 - max(0.0, min(1.0, left / longest))))
            bar = "#" * done + "-" * (_BAR - done)
            click.echo(
                f"\r{task.name}: waiting [{bar}] {max(0.0, left):4.0f} s ",
                err=True,
                nl=False,
            )
            self._drawn = True
        elif left >= longest:
            click.echo(f"{task.name}: waiting {left:.0f} s for the workers", err=True)

    def close(self) -> None:
        """End what is drawn, so that others can print."""
        self._end_line()

        if self._bars is not None:
            self._bars.close()

    def _end_line(self) -> None:
        if self._drawn:
            click.echo("", err=True)
            self._drawn = False


def _new_bars() -> Bars | None:
    try:
        from .bars import Bars
    except ImportError:
        return None

    return Bars()
