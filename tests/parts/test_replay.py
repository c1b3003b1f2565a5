"""Replay against a plain list of steps: wrap-around, successors, truncation, uniformity, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.parts import replay
from jaxrl.parts.losses import n_step_target
from jaxrl.parts.rollout import Transition
from jaxrl.parts.trees import nbytes

KEY, GAMMA = jax.random.key(0), 0.9
ENVS, STEPS, ROWS = 3, 2, 6  # two rows a rollout, three rollouts until it wraps around


def rollout(i):
    """Rollout number i: the observation is row * 10 + env, so that every step is known by it.

    The successor is the next row's observation, but for the last of an episode, where it is -1.
    """
    row = i * STEPS + np.arange(STEPS)[:, None]
    env = np.arange(ENVS)[None, :]
    terminated = (row + env) % 5 == 1
    truncated = (row + env) % 7 == 2
    obs = row * 10 + env
    final_obs = np.where(terminated | truncated, -1, (row + 1) * 10 + env)
    return Transition(
        jnp.asarray(obs[..., None], jnp.uint16),
        jnp.asarray(obs, jnp.int32) + 1,
        jnp.asarray(obs, jnp.float32) / 2,
        jnp.asarray(terminated),
        jnp.asarray(truncated),
        jnp.asarray(final_obs[..., None], jnp.uint16),
        (),
    )


def filled(rollouts, lean, windows=False):
    obs, action = jnp.zeros((ENVS, 1), jnp.uint16), jnp.zeros(ENVS, jnp.int32)
    memory = replay.create(obs, action, ROWS, lean, windows)
    for i in range(rollouts):
        memory = replay.add(memory, jnp.int32(i * STEPS), rollout(i))
    return memory


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("rollouts", [1, 2, 3, 4, 5, 8])
def test_samples_are_the_stored_steps_and_all_of_them(rollouts, lean):
    """Before, at and after the wrap-around."""
    written = rollouts * STEPS
    batch = replay.sample(
        jax.random.key(rollouts), filled(rollouts, lean), jnp.int32(written), 4000
    )
    obs = np.asarray(batch.obs, int)[:, 0]
    newest = written - 1 if lean else written  # its successor is not known yet
    stored = range(max(0, written - ROWS), newest)
    assert set(obs) == {row * 10 + env for row in stored for env in range(ENVS)}

    row, env = obs // 10, obs % 10
    np.testing.assert_array_equal(batch.action, obs + 1)
    np.testing.assert_array_equal(batch.reward, obs / 2)
    terminated, truncated = (row + env) % 5 == 1, (row + env) % 7 == 2
    np.testing.assert_array_equal(batch.terminated, terminated)
    np.testing.assert_array_equal(batch.valid, terminated | ~truncated if lean else True)
    successor = np.asarray(batch.next_obs, np.int16)[:, 0]
    going_on = ~terminated & ~truncated
    np.testing.assert_array_equal(successor[going_on], (obs + 10)[going_on])
    if not lean:
        assert (successor[~going_on] == -1).all()  # what the step led to, not the next episode
    assert batch.obs.dtype == batch.next_obs.dtype == jnp.uint16


@pytest.mark.parametrize("lean", [False, True])
def test_sampling_is_uniform(lean):
    batch = replay.sample(jax.random.key(0), filled(5, lean), jnp.int32(10), 60_000)
    counts = np.unique(np.asarray(batch.obs), return_counts=True)[1]
    assert len(counts) == (ROWS - lean) * ENVS
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_newest_steps_alone():
    batch = replay.sample(jax.random.key(0), filled(5, False), jnp.int32(10), 200, newest=2)
    assert set(np.asarray(batch.obs)[:, 0] // 10) == {8, 9}


def test_valid_mean_leaves_out_what_is_not_valid():
    values, valid = jnp.array([1.0, 100.0, 3.0, jnp.nan]), jnp.array([True, False, True, False])
    assert replay.valid_mean(values, valid) == 2
    assert replay.valid_mean(values, jnp.zeros(4, bool)) == 0


def test_bytes():
    """Per step: action 4, reward 4, terminated 1, and two observations of 2, or one and a flag."""
    assert nbytes(filled(0, False)) == ROWS * ENVS * (2 + 4 + 4 + 1 + 2)
    assert nbytes(filled(0, True)) == ROWS * ENVS * (2 + 4 + 4 + 1 + 1)
    assert nbytes(filled(0, False, windows=True)) == ROWS * ENVS * (2 + 4 + 4 + 1 + 2 + 1)


def test_a_single_lean_row_has_no_successor_yet():
    """Whatever lies in the rows that nothing was written to, no sample of it counts."""
    memory = replay.create(jnp.zeros((ENVS, 1), jnp.uint16), jnp.zeros(ENVS, jnp.int32), ROWS, True)
    memory = memory._replace(terminated=jnp.ones_like(memory.terminated))
    first = jax.tree.map(lambda x: x[:1], rollout(0))
    batch = replay.sample(
        jax.random.key(0), replay.add(memory, jnp.int32(0), first), jnp.int32(1), 50
    )
    assert not batch.valid.any()


def value(obs):
    """Of a state, for windows that bootstrap: any function of what is observed."""
    return np.sin(np.asarray(obs, np.float64))


def looped_target(row, env, newest, n, lean):
    """The n-step target of the step at (row, env), by the rule of `rollout`; None where lost."""
    total = 0.0
    for i in range(n):
        obs = (row + i) * 10 + env
        total += GAMMA**i * obs / 2
        if (row + i + env) % 5 == 1:
            return total
        if (row + i + env) % 7 == 2:
            return None if lean else total + GAMMA ** (i + 1) * value(np.uint16(65535))
        if row + i == newest:
            break
    return total + GAMMA ** (i + 1) * value(obs + 10)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(("rollouts", "n"), [(1, 3), (2, 2), (3, 4), (5, 3), (8, 6), (8, 9)])
def test_windows_give_the_targets_of_a_plain_loop(rollouts, n, lean):
    """Terminal states, time limits, the newest step and the wrap-around, all within windows."""
    written = rollouts * STEPS
    newest = written - 1 - lean  # whose successor is known
    memory = filled(rollouts, lean, windows=True)
    batch = replay.sample(jax.random.key(n), memory, jnp.int32(written), 600, n_step=n)
    assert batch.reward.shape == (600, n)
    obs = np.asarray(batch.obs, int)[:, 0]
    stored = range(max(0, written - ROWS), newest + 1)
    assert set(obs) == {row * 10 + env for row in stored for env in range(ENVS)}
    np.testing.assert_array_equal(batch.action, obs + 1)
    next_value = jnp.asarray(value(batch.next_obs[:, 0]), jnp.float32)
    args = batch.reward, batch.num_steps, batch.terminated, next_value, GAMMA
    found = np.asarray(n_step_target(*args))
    expected = [looped_target(o // 10, o % 10, newest, n, lean) for o in obs]
    np.testing.assert_array_equal(batch.valid, [target is not None for target in expected])
    at = np.asarray(batch.valid)
    np.testing.assert_allclose(found[at], [x for x in expected if x is not None], rtol=1e-5)


def test_windows_of_recorded_steps_give_the_targets_of_a_plain_loop():
    """Episodes that terminate (step 3), are cut (step 7), and stop with the data (step 11)."""
    size, n = 12, 4
    terminated, truncated = np.arange(size) == 3, np.arange(size) == 7
    obs = np.arange(size, dtype=np.float32)
    rewards = np.random.default_rng(0).normal(size=size)
    rewards[8] = 1e30  # of the next episode: it must not be seen
    data = replay.Dataset(
        obs=jnp.asarray(obs)[:, None],
        action=jnp.arange(size),
        reward=jnp.asarray(rewards, jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        next_obs=jnp.asarray(obs)[:, None] + 100,
        best_first=jnp.asarray(np.roll(np.arange(size), 5)),
        return_range=jnp.zeros(2),
    )
    batch = replay.draw(KEY, data, 300, n_step=n)
    first = np.asarray(batch.action)
    expected = []
    for i in first:
        total = 0.0
        for k in range(n):
            total += GAMMA**k * rewards[i + k]
            if terminated[i + k] or truncated[i + k] or i + k == size - 1:
                break
        bootstrap = 0.0 if terminated[i + k] else GAMMA ** (k + 1) * value(i + k + 100)
        expected.append(total + bootstrap)
    next_value = jnp.asarray(value(batch.next_obs[:, 0]), jnp.float32)
    args = batch.reward, batch.num_steps, batch.terminated, next_value, GAMMA
    assert set(first) == set(range(size))
    np.testing.assert_allclose(n_step_target(*args), expected, rtol=1e-5)


# Whole windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(("rollouts", "n"), [(1, 3), (3, 4), (8, 6), (8, 1)])
def test_whole_windows_hold_every_step(rollouts, n, lean):
    """Of a plain loop: what each place has, and whether it counts."""
    written = rollouts * STEPS
    newest = written - 1 - lean
    memory = filled(rollouts, lean, windows=True)
    args = jax.random.key(n), memory, jnp.int32(written), 300
    batch = replay.sample(*args, n_step=n, whole=True)
    plain = replay.sample(*args, n_step=n)
    np.testing.assert_array_equal(batch.obs, plain.obs)
    np.testing.assert_array_equal(batch.reward, plain.reward.reshape(300, n))
    assert batch.action.shape == batch.valid.shape == batch.terminated.shape == (300, n)
    for i, first in enumerate(np.asarray(batch.obs, int)[:, 0]):
        row, env = first // 10, first % 10
        obs, known, terminated = first, True, False
        for j in range(n):
            if j > 0 and known and not terminated:  # the episode goes on, as far as is stored
                over = (row + j - 1 + env) % 7 == 2 or row + j - 1 == newest
                known = not over
            if known and not terminated:
                obs = (row + j) * 10 + env
                terminated = (row + j + env) % 5 == 1
            truncated = (row + j + env) % 7 == 2
            lost = lean and truncated and not terminated
            assert batch.action[i, j] == obs + 1
            assert bool(batch.valid[i, j]) == (known and not lost)
            assert bool(batch.terminated[i, j]) == terminated
            if batch.valid[i, j] and not terminated:
                successor = 65535 if truncated else obs + 10
                assert int(batch.next_obs[i, j, 0]) == successor


def test_whole_windows_of_recorded_steps():
    """The end of an episode at step 1, a cut at step 3, the end of the data at step 5."""
    size, n = 6, 3
    data = replay.Dataset(
        obs=jnp.arange(size, dtype=jnp.float32)[:, None],
        action=jnp.arange(size),
        reward=jnp.arange(size, dtype=jnp.float32),
        terminated=jnp.arange(size) == 1,
        truncated=jnp.arange(size) == 3,
        next_obs=jnp.arange(size, dtype=jnp.float32)[:, None] + 100,
        best_first=jnp.arange(size),
        return_range=jnp.zeros(2),
    )
    batch = replay.draw(KEY, data, 100, n_step=n, whole=True)
    expected = {  # first step -> steps, which of them count, whether the episode has terminated
        0: ([0, 1, 1], [1, 1, 1], [0, 1, 1]),
        1: ([1, 1, 1], [1, 1, 1], [1, 1, 1]),
        2: ([2, 3, 3], [1, 1, 0], [0, 0, 0]),
        3: ([3, 3, 3], [1, 0, 0], [0, 0, 0]),
        4: ([4, 5, 5], [1, 1, 0], [0, 0, 0]),
        5: ([5, 5, 5], [1, 0, 0], [0, 0, 0]),
    }
    firsts = np.asarray(batch.obs, int)[:, 0]
    assert set(firsts) == set(expected)
    for i, first in enumerate(firsts):
        steps, valid, terminated = expected[first]
        assert batch.action[i].tolist() == steps
        assert (np.asarray(batch.next_obs)[i, :, 0] - 100).tolist() == steps
        assert batch.valid[i].astype(int).tolist() == valid
        assert batch.terminated[i].astype(int).tolist() == terminated
    assert batch.num_steps.tolist() == [{0: 2, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1}[f] for f in firsts]
