"""Means over independent runs and how far they can be trusted."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


def mean_ci(values: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis with Student's t confidence interval: (mean, low, high).

    `values` is (members, ...), one independent run a row; NaN means missing and is left out. Each
    of the three results has shape (...). The interval is mean -/+ t[(1+level)/2, n-1] s/sqrt(n),
    s the sample standard deviation; from fewer than two values it is NaN, and from none so is the
    mean.

    Raises: ValueError where `values` has no axis, or `level` is not inside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0:
        raise ValueError("mean_ci: a single number has no confidence interval")
    if not 0 < level < 1:
        raise ValueError(f"mean_ci: level={level} is outside (0, 1)")
    n = np.sum(~np.isnan(values), axis=0)
    with warnings.catch_warnings():  # NumPy warns of the NaNs that are promised above
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(values, axis=0)
        deviation = np.nanstd(values, axis=0, ddof=1)
        quantile = np.where(n > 1, stdtrit(np.maximum(n - 1, 1), (1 + level) / 2), np.nan)
        half = quantile * deviation / np.sqrt(n)
    return mean, mean - half, mean + half
