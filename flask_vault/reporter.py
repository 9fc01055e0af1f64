"""Shows how far a rotation is, while it runs."""

from __future__ import annotations

import sys
import typing as t

import click

from .rotation.tasks import Progress
from .rotation.tasks import Task

#: Characters of a full bar.
_BAR: t.Final = 24


class Reporter:
    """Shows steps and waits: a bar on a terminal, else a line for each step.

    :param quiet: shows nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = sys.stderr.isatty()
        self._drawn = False
        self._waits: dict[Task, float] = {}

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return

        task, left = progress.task, progress.remaining

        if left is None:
            self.close()
            self._waits.pop(task, None)
            operation = (progress.operation or "")[:8]
            click.echo(f"{task.name}: {progress.step} ({operation})", err=True)
            return

        longest = self._waits.setdefault(task, max(left, 0.001))

        if self._bar:
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
        """End the line of a bar."""
        if self._drawn:
            click.echo("", err=True)
            self._drawn = False
