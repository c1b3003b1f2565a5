"""Where in a run the host may act: between which chunks of iterations, and where it evaluates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNKS = 100  # that a run is cut into, between which the host may act
CHUNK_SECONDS = 10.0  # a chunk that lasts longer is cut again, but for the first, not yet timed


class Schedule(NamedTuple):
    """The iterations of a run. It follows from the whole run, not from where it is interrupted.

    Attributes:
        iterations: of the whole run.
        evaluations: how many, evenly spaced, the last at the end.
        episodes: of each evaluation.
        until: stop after this iteration, if that comes first.
    """

    iterations: int
    evaluations: int = 0
    episodes: int = 64
    until: int | None = None

    @property
    def last(self) -> int:
        """The iteration after which it stops."""
        return self.iterations if self.until is None else min(self.until, self.iterations)

    @property
    def bounds(self) -> np.ndarray:
        """Iterations between which the host acts, from 0 to the end of the whole run."""
        chunks = max(1, self.evaluations) * max(1, round(CHUNKS / max(1, self.evaluations)))
        return np.unique(np.round(np.linspace(0, self.iterations, chunks + 1)).astype(int))

    @property
    def length(self) -> int:
        """Iterations of the longest chunk."""
        return int(np.diff(self.bounds).max())

    def stop(self, t: int, rate: float) -> int:
        """Where a chunk from iteration `t` ends, at `rate` iterations per second (inf: unknown)."""
        bounds = self.bounds
        limit = max(1, int(min(CHUNK_SECONDS * rate, self.length)))
        return min(int(bounds[bounds > t][0]), t + limit, self.last)

    def evaluates(self, t: int) -> bool:
        """Whether there is an evaluation after iteration `t`."""
        ends = np.linspace(0, self.iterations, self.evaluations + 1)[1:]
        return t in np.round(ends).astype(int)
