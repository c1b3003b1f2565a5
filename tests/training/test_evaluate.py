"""Evaluation by whole episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from tests.helpers import Toy
from tests.probes import Params, Probe, TimeLimit

KEY = jax.random.key(0)


class Drawn(Probe):
    """Lasts 2 or 4 steps, as its reset draws; each step is worth its number; action 1 doubles."""

    def __init__(self, resets="fresh", limit=100):
        super().__init__(limit=limit)
        self.resets, self.pool_size = resets, 64

    def step_env(self, key, state, action, params):
        obs, after, _, _, info = super().step_env(key, state, action, params)
        reward = after.time.astype(jnp.float32) * (1 + action)
        return obs, after, reward, after.time >= 3 + after.sign, info


def evaluate(env, weight, key=KEY, **options):
    agent = Toy(env, env.default_params, total_steps=8)
    state = agent.init(KEY)._replace(weight=jnp.asarray(weight))
    return jaxrl.evaluate(agent, state, key, **options)


@pytest.mark.parametrize("resets", ["fresh", "pool", "cached"])
def test_returns_are_exact(resets):
    result = evaluate(Drawn(resets), -1.0, episodes=40)
    assert result.finished.all()
    assert set(np.asarray(result.lengths)) == {2, 4}
    # 1 + 2, or 1 + 2 + 3 + 4: what happens after an episode's end does not count.
    np.testing.assert_array_equal(result.returns, np.where(result.lengths == 2, 3, 10))


def test_the_policy_acts():
    result = evaluate(Drawn(), 1.0, episodes=40)
    np.testing.assert_array_equal(result.returns, np.where(result.lengths == 2, 6, 20))


def test_a_cap_ends_what_has_not_ended():
    with pytest.warns(UserWarning, match="of 40 evaluation episodes were cut off unfinished"):
        result = evaluate(Drawn(), -1.0, episodes=40, max_steps=3)
    np.testing.assert_array_equal(result.finished, result.lengths == 2)
    np.testing.assert_array_equal(result.returns, np.where(result.finished, 3, 6))
    assert set(np.asarray(result.lengths)) == {2, 3}


def test_a_time_limit_is_an_end():
    result = evaluate(TimeLimit(limit=7), 1.0, episodes=3)
    np.testing.assert_array_equal(result.returns, [7, 7, 7])
    assert result.finished.all()


def test_only_the_environments_own_flags_end_episodes():
    """Its parameter may say anything: one that gymnax's base class leaves at 1 cuts nothing."""
    env = Drawn(limit=1)
    env.is_truncated = lambda state, params: jnp.zeros((), bool)
    result = evaluate(env, -1.0, episodes=40)
    assert result.finished.all()
    np.testing.assert_array_equal(result.returns, np.where(result.lengths == 2, 3, 10))


def test_what_never_ends_is_cut_with_a_warning(monkeypatch):
    monkeypatch.setattr("jaxrl.training.evaluate.FEWEST_STEPS", 9)
    env = TimeLimit(limit=7)
    env.is_truncated = lambda state, params: jnp.zeros((), bool)
    with pytest.warns(UserWarning, match="3 of 3 evaluation episodes were cut off unfinished"):
        result = evaluate(env, 1.0, episodes=3)
    np.testing.assert_array_equal(result.returns, [9, 9, 9])
    assert not result.finished.any()


def test_the_key_decides_which_episodes():
    results = [evaluate(Drawn(), -1.0, jax.random.key(k), episodes=40) for k in (0, 0, 1)]
    np.testing.assert_array_equal(results[0].returns, results[1].returns)
    assert (results[0].returns != results[2].returns).any()


def test_caps_and_keys_do_not_recompile():
    env = Drawn()
    agent = Toy(env, env.default_params, total_steps=8)
    state = agent.init(KEY)
    jaxrl.evaluate(agent, state, KEY, 4, max_steps=5)
    traces = env.traces
    for cap in (6, 7):
        jaxrl.evaluate(agent, state, jax.random.key(cap), 4, max_steps=cap)
    params = Params(jnp.int32(2), jnp.float32(1), jnp.int32(0))
    jaxrl.evaluate(agent.replace(env_params=params), state, KEY, 4, max_steps=6)
    assert env.traces == traces
