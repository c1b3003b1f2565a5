"""How far runs are from each other, against quadrature and the distribution's own KL."""

import numpy as np
import pytest

from jaxrl.parts.distributions import Normal
from jaxrl.report.divergence import normal_divergences, of_disjoint_pairs

RNG = np.random.default_rng(0)


def log_density(x, mean, log_std):
    return -0.5 * ((x - mean) * np.exp(-log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)


def test_divergences_of_squashed_normals_by_quadrature():
    """Of actions after tanh, both directions, two runs at two states."""
    mean, log_std = RNG.normal(size=(2, 2, 1)), RNG.uniform(-0.7, 0.2, size=(2, 2, 1))
    action = np.tanh(np.linspace(-9, 9, 40_001))
    u = np.linspace(-9, 9, 40_001)
    slope = 1 / np.cosh(u) ** 2
    total = 0.0
    for state in range(2):
        logs = [log_density(u, mean[i, state], log_std[i, state]) - np.log(slope) for i in (0, 1)]
        for a, b in (logs, logs[::-1]):
            total += 0.5 * np.trapezoid(np.exp(a) * (a - b), action)
    found = normal_divergences(mean, log_std)
    np.testing.assert_allclose(found[0, 1], total / 2, rtol=1e-4)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)


def test_it_is_the_mean_of_both_directions_over_states_and_the_sum_over_dimensions():
    mean, log_std = RNG.normal(size=(3, 5, 2)), RNG.uniform(-2, 1, size=(3, 5, 2))
    found = normal_divergences(mean, log_std)
    for i in range(3):
        for j in range(3):
            one, other = (Normal(mean[k].astype("f"), log_std[k].astype("f")) for k in (i, j))
            expected = 0.5 * (one.kl(other) + other.kl(one)).mean()
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-6)


def test_disjoint_pairs_share_no_run():
    table = np.arange(25).reshape(5, 5)
    assert of_disjoint_pairs(table).tolist() == [table[0, 1], table[2, 3]]  # the fifth has none
    assert of_disjoint_pairs(np.zeros((1, 1))).shape == (0,)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mean\(2, 3\) and log_std\(2, 3\) must be of one shape"):
        normal_divergences(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"log_std\(2, 3, 2\)"):
        normal_divergences(np.zeros((2, 3, 1)), np.zeros((2, 3, 2)))
