"""Which members of a population copy which, and what they change: exploit and explore.

Population-based training (Jaderberg et al. 2017, arXiv:1711.09846) with truncation selection. NumPy
alone; all that is drawn follows from a seed and the iteration, so a resumed run draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.training.search import Lin, Log, Space, plain


class Exchange(NamedTuple):
    """What happened to all members after an iteration.

    Attributes:
        iteration: how many were done; 0: the values that members began with.
        scores: what they were ranked by (members,): mean return of the training episodes that ended
            since the exchange before, or of the newest evaluation where an agent has no episodes of
            its own. NaN: there was none; minus infinity: the member had diverged.
        parents: the member whose state and values each took over (members,); who stayed, itself.
        values: hyper-parameters from here on, name -> (members,).
    """

    iteration: int
    scores: list[float]
    parents: list[int]
    values: dict[str, list[Any]]

    @classmethod
    def none(cls, values: dict[str, list[Any]]) -> Exchange:
        """The values that members begin with."""
        members = len(next(iter(values.values())))
        return cls(0, [float("nan")] * members, list(range(members)), values)


def ancestors(exchanges: Sequence[Exchange], member: int) -> list[int]:
    """Whose values after each exchange led to what `member` is in the end."""
    found = [member]
    for exchange in reversed(exchanges[1:]):
        found.append(exchange.parents[found[-1]])
    return found[::-1]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Truncation selection, then perturbation or resampling of what was copied.

    Attributes:
        space: the hyper-parameters that are changed, and their ranges or lists.
        share: of the members that is replaced, and of those that are copied.
        resample: probability that a value is drawn anew from its range instead of perturbed.
        seed: of all that is drawn.
    """

    space: Space
    share: float
    resample: float
    seed: int

    def __call__(
        self, iteration: int, scores: np.ndarray, values: Mapping[str, Sequence[Any]]
    ) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """The parents (members,), and the values of all members from here on."""
        rng = np.random.default_rng([self.seed, iteration])
        parents = truncation(scores, self.share, rng)
        new = {}
        for name, axis in self.space.items():
            column = [values[name][parent] for parent in parents]
            for i in np.flatnonzero(parents != np.arange(len(parents))):
                column[i] = self._explored(axis, column[i], rng)
            new[name] = column
        return parents, new

    def _explored(self, axis: Any, value: Any, rng: np.random.Generator) -> Any:
        anew, up = rng.random() < self.resample, bool(rng.random() < 0.5)
        if isinstance(axis, Lin | Log):
            changed = axis.sample(rng) if anew else axis.perturbed(value, up)
            return round(changed) if isinstance(value, int) else changed
        choices = [plain(x) for x in axis]
        if anew:
            return choices[int(rng.integers(len(choices)))]
        here = int(np.argmin([abs(x - value) for x in choices]))  # it is held in single precision
        return choices[min(max(here + (1 if up else -1), 0), len(choices) - 1)]


def truncation(scores: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Whom each member copies (members,), itself where it stays.

    The worst `share` of the members, at least one, and all that have diverged (-inf) copy one of
    the best `share` each, drawn at random. Members without a score (NaN) take no part; of equal
    scores the first is the better.

    >>> rng = np.random.default_rng(0)
    >>> truncation(np.array([3.0, 1.0, 2.0, 4.0]), 0.25, rng)
    array([0, 3, 2, 3])
    """
    everyone = np.arange(len(scores))
    ranked = sorted(everyone[~np.isnan(scores)], key=lambda i: -scores[i])
    number = min(max(1, round(share * len(scores))), len(ranked) // 2)
    best = [i for i in ranked[:number] if scores[i] > -np.inf]
    parents = everyone.copy()
    if best:
        for place, i in enumerate(ranked):
            if i not in best and (place >= len(ranked) - number or scores[i] == -np.inf):
                parents[i] = best[int(rng.integers(len(best)))]
    return parents
