"""How far the policies of independent runs are from each other, at states that they share.

The runs of a comparison are the members of a population, so nothing has to be trained for it, and
nothing is computed unless one of these is called.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike


def normal_divergences(mean: ArrayLike, log_std: ArrayLike) -> np.ndarray:
    """Symmetric KL divergence of each two runs' diagonal normals, averaged over states.

    Of M runs at S states, `mean` and `log_std` are (M, S, D); the result is (M, M), float64:
    (KL(i || j) + KL(j || i)) / 2, 0 where i = j. Whatever maps both normals one to one, such as
    tanh, leaves it as it is, so that it is also that of squashed policies.

    Raises: ValueError where the shapes differ or are not of three axes.

    >>> mean = [[[0.0]], [[2.0]]]
    >>> normal_divergences(mean, np.zeros((2, 1, 1))).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    mean, log_std = (np.asarray(x, dtype=np.float64) for x in (mean, log_std))
    if mean.shape != log_std.shape or mean.ndim != 3:
        raise ValueError(
            f"normal_divergences: mean{mean.shape} and log_std{log_std.shape} must be of one "
            "shape (runs, states, dimensions)"
        )
    result = np.zeros((len(mean), len(mean)))
    for i, j in itertools.combinations(range(len(mean)), 2):
        # Of both directions together the logs of the deviations cancel.
        ratio, gap = 2 * (log_std[i] - log_std[j]), (mean[i] - mean[j]) ** 2
        spreads = np.cosh(ratio) - 1
        means = 0.5 * gap * (np.exp(-2 * log_std[i]) + np.exp(-2 * log_std[j]))
        result[i, j] = result[j, i] = 0.5 * (spreads + means).sum(axis=-1).mean()
    return result


def of_disjoint_pairs(divergences: ArrayLike) -> np.ndarray:
    """Those of runs 0 and 1, 2 and 3, ... (M // 2,) from all (M, M): independent of each other.

    The others share runs, and an interval of all of them would be too narrow.

    >>> of_disjoint_pairs([[0, 5, 1, 1], [5, 0, 1, 1], [1, 1, 0, 7], [1, 1, 7, 0]]).tolist()
    [5, 7]
    """
    divergences = np.asarray(divergences)
    first = np.arange(0, len(divergences) - 1, 2)
    pairs: np.ndarray = divergences[first, first + 1]
    return pairs
