"""Sides of a comparison that take turns."""

from __future__ import annotations

import collections.abc as cabc
import statistics
import typing as t

#: Runs once and returns the seconds that it took.
Side = cabc.Callable[[], float]


class Runs:
    """The durations of the sides, one of each in every round.

    :param durations: seconds, by the side's name.
    """

    def __init__(self, durations: cabc.Mapping[str, cabc.Sequence[float]]) -> None:
        self._durations = durations

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self._durations[name])

    def best(self, name: str) -> float:
        """Seconds."""
        return min(self._durations[name])

    def ratio(self, name: str, peer: str) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(mine / his for mine, his in self._pairs(name, peer))

    def difference(self, name: str, peer: str) -> float:
        """The median of the rounds' differences, in seconds."""
        return statistics.median(mine - his for mine, his in self._pairs(name, peer))

    def _pairs(self, name: str, peer: str) -> cabc.Iterator[tuple[float, float]]:
        return zip(self._durations[name], self._durations[peer], strict=True)


def take_turns(
    sides: cabc.Mapping[str, Side], rounds: int, *, warm_up: int = 1
) -> Runs:
    """Run every side once per round, each round in the order opposite to the last.

    :param warm_up: rounds before those that count.
    """
    durations: dict[str, list[float]] = {name: [] for name in sides}
    order: list[tuple[str, t.Any]] = list(sides.items())

    for number in range(-warm_up, rounds):
        for name, side in order:
            taken = side()

            if number >= 0:
                durations[name].append(taken)

        order.reverse()

    return Runs(durations)
