"""Where in a run the host may act: between which chunks of iterations, and where it evaluates."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

CHUNKS = 100  # about as many as a run is cut into, between which the host may act
FEWEST = 10  # that chunks are made longer for
SHORTEST, LONGEST = 0.3, 10.0  # seconds of a chunk: each costs the host a few milliseconds
ROWS = 4096  # iterations whose metrics a program holds, unless a hundredth of the run is more


class Schedule(NamedTuple):
    """The iterations of a run. It follows from the whole run, not from where it is interrupted.

    Attributes:
        iterations: of the whole run.
        evaluations: how many, evenly spaced, the last at the end.
        episodes: of each evaluation.
        until: stop after this iteration, if that comes first.
        every: iterations from one exchange of population-based training to the next; 0: none.
    """

    iterations: int
    evaluations: int = 0
    episodes: int = 64
    until: int | None = None
    every: int = 0

    @property
    def last(self) -> int:
        """The iteration after which it stops."""
        return self.iterations if self.until is None else min(self.until, self.iterations)

    @property
    def share(self) -> int:
        """Iterations of a chunk that is neither too short nor too long."""
        return math.ceil(self.iterations / CHUNKS)

    @property
    def length(self) -> int:
        """Iterations of the longest chunk."""
        return max(self.share, min(math.ceil(self.iterations / FEWEST), ROWS))

    def stop(self, t: int, rate: float) -> int:
        """Where a chunk from iteration `t` ends, at `rate` iterations per second (inf: unknown).

        The first is one iteration, and none is longer than all before it together: a run that is
        asked to stop early on answers soon, however long an iteration takes.
        """
        limit = 1 if math.isinf(rate) else min(self.length, LONGEST * rate, t + 1)
        wanted = max(self.share, SHORTEST * rate)
        end = t + max(1, int(min(wanted, limit)))
        evaluated = self.evaluated_at
        exchanged = [t - t % self.every + self.every] if self.every else []
        return int(min([end, self.last, *evaluated[evaluated > t][:1], *exchanged]))

    def exchanges(self, t: int) -> bool:
        """Whether members copy each other between iterations t - 1 and t."""
        return self.every > 0 and t > 0 and t % self.every == 0

    @property
    def evaluated_at(self) -> np.ndarray:
        """The iterations after which there is an evaluation."""
        ends = np.linspace(0, self.iterations, self.evaluations + 1)[1:]
        return np.round(ends).astype(int)

    def evaluates(self, t: int) -> bool:
        """Whether there is an evaluation after iteration `t`."""
        return t in self.evaluated_at
