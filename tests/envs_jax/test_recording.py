"""Recordings in memory: joined, drawn from, padded for off-policy evaluation."""

import dataclasses

import numpy as np
import pytest

from envs_jax import datasets
from envs_jax.recording import Recording, arrays_of
from jaxrl.parts import ope


def recording(lengths, ended=True, info=None, **changes):
    """Episodes of these lengths, the last without an end unless `ended`; step i has reward i."""
    size = sum(lengths)
    last = np.isin(np.arange(size), np.cumsum(lengths) - 1)
    last[-1] &= ended
    obs = np.arange(size, dtype=np.float32)[:, None]
    action, reward = np.zeros((size, 1), np.float32), np.arange(size, dtype=np.float32)
    steps = Recording(obs, action, reward, last, np.zeros(size, bool), obs + 1, info or {})
    return dataclasses.replace(steps, **changes)


def test_joined_recordings_keep_their_episodes_apart():
    """One that has no end stays a fragment, and does not run into the next recording."""
    joined = datasets.join([recording([2, 3], ended=False), recording([4, 1])])
    np.testing.assert_array_equal(joined.episode_lengths, [2, 3, 4, 1])
    np.testing.assert_array_equal(joined.whole, [True, False, True, True])
    np.testing.assert_array_equal(joined.reward, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"cannot be joined: obs is of shapes \[\(1,\), \(2,\)\]"):
        datasets.join([recording([2]), recording([2], obs=np.zeros((2, 2)))])


def test_what_joined_recordings_say_is_what_all_say(recwarn):
    low = {"env": "a", "random_return": 0.0, "expert_return": 10.0, "kind": "medium"}
    high = low | {"kind": "expert"}
    joined = datasets.join([recording([2], info=low), recording([2], info=high)])
    assert joined.info == {"env": "a", "random_return": 0.0, "expert_return": 10.0}
    assert not recwarn
    for other in (low | {"expert_return": 9.0}, {"env": "a"}):
        with pytest.warns(UserWarning, match="name different reference returns: scores are not"):
            joined = datasets.join([recording([2], info=low), recording([2], info=other)])
        assert joined.info.keys() <= {"env", "kind"}
        assert joined.score(5.0) is None


def test_log_probabilities_are_joined_where_all_have_them():
    known = recording([2], log_prob=np.array([-1.0, -2.0]))
    joined = datasets.join([known, known])
    np.testing.assert_array_equal(joined.log_prob, [-1, -2, -1, -2])
    assert datasets.join([known, recording([2])]).log_prob is None


def test_a_part_is_of_entire_episodes_and_always_the_same():
    lengths = list(range(1, 21))
    everything = recording(lengths, ended=False, log_prob=np.arange(210.0))
    part = datasets.subsample(everything, 100)
    assert 100 <= len(part) < 120
    assert set(part.episode_lengths) <= set(lengths)
    assert len(part.episode_lengths) == len(set(part.episode_lengths))
    np.testing.assert_array_equal(part.log_prob, part.reward)  # rows stay together
    assert (np.diff(part.reward) > 0).all()
    same, other = datasets.subsample(everything, 100), datasets.subsample(everything, 100, seed=1)
    for name, values in arrays_of(part).items():
        np.testing.assert_array_equal(values, getattr(same, name))
    assert not np.array_equal(part.reward, other.reward)
    assert len(datasets.subsample(everything, 210)) == 210
    with pytest.raises(ValueError, match="211 steps are asked for, but only 210 are recorded"):
        datasets.subsample(everything, 211)


def test_discounted_returns():
    found = recording([2, 3]).discounted_returns(0.5)
    np.testing.assert_allclose(found, [0.5, 2 + 0.5 * 3 + 0.25 * 4])


def two_armed(behaviour=(0.25, 0.75), lengths=(1, 1, 1, 1, 2)):
    """Arm 0 pays 1, arm 1 pays 3, pulled as often as `behaviour` says; the last is a fragment."""
    action = np.array([0, 1, 1, 1, 0, 0], np.int32)
    reward = np.where(action == 0, 1, 3).astype(np.float32)
    last = np.isin(np.arange(6), np.cumsum(lengths) - 1)
    stopped = np.arange(6) == 5
    known = np.log(np.asarray(behaviour, np.float32))[action]
    obs = np.zeros((6, 1), np.float32)
    return Recording(obs, action, reward, last & ~stopped, stopped, obs, {}, stopped, known)


def test_off_policy_evaluation_of_a_recording_is_exact_where_its_frequencies_are():
    target = np.log(np.array([0.5, 0.5], np.float32))
    steps = two_armed()
    arrays = steps.ope_arrays(target[steps.action])
    assert arrays.mask.shape == (4, 1)  # whole episodes alone
    for estimate in (ope.importance_sampling, ope.per_decision):
        assert estimate(*arrays, gamma=0.9) == pytest.approx(0.5 * 1 + 0.5 * 3)
    with pytest.raises(ValueError, match=r"log_prob is of shape \(2,\), not \(6,\)"):
        steps.ope_arrays(target)
    with pytest.raises(ValueError, match="does not hold the log-probabilities"):
        dataclasses.replace(steps, log_prob=None).ope_arrays(target[steps.action])


def test_episodes_of_unlike_length_are_padded():
    steps = recording([2, 3], log_prob=np.full(5, -1.0))
    arrays = steps.ope_arrays(np.arange(5.0))
    np.testing.assert_array_equal(arrays.mask, [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(arrays.reward, [[0, 1, 0], [2, 3, 4]])
    np.testing.assert_array_equal(arrays.log_ratio, [[1, 2, 0], [3, 4, 5]])
