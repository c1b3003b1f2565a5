"""What every suite of others has to pass, and a comparison with the suite's own loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
import jaxrl
from agents.on_policy.ppo import PPO
from jaxrl import masks
from tests.envs_jax.test_envs import QUICK, check_time_limit, check_types, rollout, row

LIMIT = 5


def check_environment(id, **options):
    """The catalogue's row, spaces, types, and a time limit that truncates and is traced."""
    env, params = envs_jax.make(id, **options)
    assert env is envs_jax.make(id, **options)[0]
    assert env.name == id
    if not options:
        assert envs_jax.describe(id) == row(id, env, params)
    check_types(env, params)
    traces = []

    @partial(jax.jit, compiler_options=QUICK)
    def run(keys, params):
        traces.append(1)
        return jax.vmap(rollout, in_axes=(None, 0, None))(env, keys, params)

    keys = jax.random.split(jax.random.key(1), 2)
    for limit in (int(params.max_steps_in_episode), LIMIT):
        changed = params.replace(max_steps_in_episode=jnp.asarray(limit, jnp.int32))
        data = jax.tree.map(np.asarray, run(keys, changed))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(data))
        check_time_limit(data, limit)
    assert len(traces) == 1
    return env, params


def check_against(env, params, reset, step, num_steps=30, legal=False):
    """Random steps give what the suite's own loop gives.

    `reset(key) -> (obs, state)`, `step(key, state, action) -> (obs, state, reward, ended)`.
    `legal`: of the legal actions alone, so that episodes last.
    """
    reset, step = (jax.jit(f, compiler_options=QUICK) for f in (reset, step))
    our_reset, our_step = (
        jax.jit(f, compiler_options=QUICK) for f in (env.reset_env, env.step_env)
    )
    rewards, ends = [], 0
    obs, state = our_reset(jax.random.key(0), params)
    expected, theirs = reset(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), num_steps):
        mask = env.action_mask(state, params)
        if env.masked:
            np.testing.assert_array_equal(obs.action_mask, mask)
        np.testing.assert_allclose(masks.split(obs)[0], expected, rtol=1e-5, atol=1e-6)
        assert (mask.shape, mask.dtype) == ((env.num_actions,), bool)
        logits = jnp.where(mask | (not legal), 0.0, -jnp.inf)
        action = jax.random.categorical(key, logits)
        obs, state, reward, terminated, _ = our_step(key, state, action, params)
        expected, theirs, their_reward, ended = step(key, theirs, action)
        np.testing.assert_allclose(reward, their_reward, rtol=1e-5, atol=1e-6)
        assert bool(terminated) == bool(ended)
        rewards.append(float(reward))
        if ended:
            ends += 1
            obs, state = our_reset(key, params)
            expected, theirs = reset(key)
    return np.array(rewards), ends


def check_training(env, params):
    """A training of a few iterations, on whatever networks fit the observations."""
    agent = PPO(env, params, total_steps=128, num_envs=2, num_steps=16, num_minibatches=2)
    run = jaxrl.train(agent, seed=0)
    assert np.isfinite(run.history.metrics["policy_loss"]).all()
    assert run.history.env_steps[-1] == 128
