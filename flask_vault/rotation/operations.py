"""Runs rotations of values that are in use outside of Vault, too, several at a time."""

from __future__ import annotations

import collections.abc as cabc
import time
import typing as t

from ..vault.documents import Document
from ..vault.documents import Location
from .journal import Fields
from .run import Run
from .tasks import Means
from .tasks import Result
from .tasks import Task


class Operations:
    """Runs journalled rotations.

    :param means: with what.
    """

    def __init__(self, means: Means) -> None:
        self._means = means

    def run(
        self,
        tasks: cabc.Iterable[Task],
        *,
        seen: cabc.Mapping[Location, Document] | None = None,
        values: cabc.Mapping[Task, Fields] | None = None,
    ) -> list[Result]:
        """Rotate several fields: all get ready, all wait together, each goes on.

        One that fails does not stop the others; its result holds the error.

        :param seen: the documents as they were when the run was asked for. What is
            rotated since then is not rotated again.
        :param values: what fields become, where that is not to be made.
        """
        runs = [
            Run(
                self._means,
                task,
                (seen or {}).get(task.location),
                (values or {}).get(task),
            )
            for task in tasks
        ]
        waiting = list(runs)

        while waiting:
            due = {run: run.go_on() for run in waiting}
            waiting = [run for run, seconds in due.items() if seconds is not None]

            if not self._means.rules.wait:
                break

            if waiting:
                self._wait({run: t.cast(float, due[run]) for run in waiting})

        return [run.result() for run in runs]

    def abort(self, task: Task, *, force: bool = False) -> Result:
        """Give up an open rotation, when that is proven to do no harm.

        :param force: give up one that may have made a value elsewhere, which a person
            has looked for.
        """
        run = Run(self._means, task, None, None)
        run.abort(force)
        return run.result()

    def _wait(self, due: cabc.Mapping[Run, float]) -> None:
        began = time.monotonic()
        shortest = min(due.values())

        while (left := shortest - (time.monotonic() - began)) > 0:
            for run, seconds in due.items():
                run.report("waiting", seconds - (time.monotonic() - began))

            time.sleep(min(left, 1.0))
