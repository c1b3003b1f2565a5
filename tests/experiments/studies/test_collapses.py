"""When a run has collapsed, as the studies `gate` and `collapse` count it, against loops."""

import numpy as np

from experiments.studies import collapse, gate

RNG = np.random.default_rng(0)


def test_onset_of_the_gap():
    gap = np.concatenate([RNG.uniform(0, 0.5, (3, 20)), RNG.uniform(0, 1.3, (3, 20))], axis=1)
    gap[2] = 0.4  # never
    means = [[np.mean(row[max(0, t - 9) : t + 1]) for t in range(40)] for row in gap]
    np.testing.assert_allclose(gate.smooth(gap), means)
    firsts = [next((t + 1 for t in range(40) if row[t] > 0.5), 41) for row in means]
    assert firsts[0] <= 40
    assert gate.onset(gap).tolist() == firsts
    np.testing.assert_allclose(gate.last(gap), [np.mean(row[-4:]) for row in gap])


def test_iterations_to_half_the_entropy():
    entropy = np.array([[2.0, 1.0, 0.8, 0.7, 0.1], [1.0, 1.0, 1.0, 0.9, 0.6]])
    assert collapse.halved(entropy).tolist() == [3, 6]  # below 1; never below 0.5
