"""Bars for what a rotation waits for, by rich. It is imported on a terminal alone."""

from __future__ import annotations

import typing as t

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import TaskID
from rich.progress import TextColumn
from rich.text import Text

#: Characters of a full bar.
_BAR: t.Final = 24


class Bars:
    """A bar for each wait, below the steps that were done.

    Nothing is drawn but when a method is called: a thread would draw into what the
    command prints.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR),
            TextColumn("{task.fields[left]:>4.0f} s", style="cyan"),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )

    def step(self, name: str, step: str, operation: str) -> None:
        """Print a step above the bars, and end the wait before it."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

        if not self._tasks:
            self._progress.stop()

        said = (f"{name}: ", (step, "green"), (f" ({operation})", "dim"))
        self._console.print(Text.assemble(*said), soft_wrap=True)

    def wait(self, name: str, left: float, longest: float) -> None:
        """Draw the seconds that are left of a wait."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(
                f"{name}: waiting", total=longest, left=left
            )

        self._progress.update(
            self._tasks[name], completed=longest - max(0.0, left), left=max(0.0, left)
        )
        self._progress.start()
        self._progress.refresh()

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()

        for task in self._tasks.values():
            self._progress.remove_task(task)

        self._tasks = {}
