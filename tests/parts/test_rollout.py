"""Rollouts: resets of three kinds, what a transition keeps, episode statistics."""

from functools import partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from jaxrl.parts.rollout import draw, reset, rollout, step_envs
from tests.helpers import assert_same
from tests.probes import Probe

N, T = 4, 10
KEY = jax.random.key(3)


class Marked(Probe):
    """Observes the number drawn at its reset plus 1 for each step; reward is the time."""

    length = 3

    def __init__(self, resets="fresh", pool_size=2, limit=100):
        super().__init__(limit=limit)
        self.resets, self.pool_size = resets, pool_size

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        state = state.replace(sign=jax.random.uniform(key))
        return self.see(state), state

    def see(self, state):
        return (state.sign + state.time)[None]

    def reward(self, state, goodness):
        return state.time.astype(jnp.float32)


def act(obs, key):
    action = jax.random.randint(key, obs.shape[:1], 0, 2)
    return action, action, obs[:, 0]


@partial(jax.jit, static_argnums=(0, 2))
def run(env, params, num_steps=T, length=None):
    actors = reset(KEY, env, params, N)
    return actors, *rollout(KEY, env, params, actors, act, num_steps, length)


def starts(steps):
    """The observation that each environment's later episodes began with."""
    after_end = np.asarray(steps.terminated | steps.truncated)[:-1]
    return np.asarray(steps.obs)[1:, :, 0], after_end


@pytest.mark.parametrize("limit", [100, 3, 2])
@pytest.mark.parametrize("resets", ["fresh", "pool", "cached"])
def test_resets(resets, limit):
    env = Marked(resets, limit=limit)
    before, after, steps, _ = run(env, env.default_params)
    length = min(limit, 3)
    ends = np.arange(1, T + 1) % length == 0
    np.testing.assert_array_equal(steps.terminated, (ends & (length == 3))[:, None].repeat(N, 1))
    np.testing.assert_array_equal(steps.truncated, (ends & (limit <= 3))[:, None].repeat(N, 1))

    # The final observation is where the step led, also where an episode ended.
    np.testing.assert_allclose(steps.final_obs, steps.obs + 1, rtol=1e-6)
    np.testing.assert_array_equal(steps.extras, steps.obs[..., 0])
    np.testing.assert_array_equal(before.obs, steps.obs[0])
    following = jnp.concatenate([steps.obs[1:], after.obs[None]])
    goes_on = ~np.asarray(steps.terminated | steps.truncated)
    np.testing.assert_array_equal(following[goes_on], steps.final_obs[goes_on])

    obs, began = starts(steps)
    assert (obs[began] < 1).all()
    first = np.asarray(before.obs[:, 0])
    if resets == "cached":
        np.testing.assert_array_equal(obs[began], np.tile(first, began.any(1).sum()))
    elif resets == "pool":
        assert len(np.unique(obs[began])) == 2  # its size, and not those it began with
        assert not np.isin(obs[began], first).any()
    else:
        everything = np.concatenate([obs[began], first])
        assert len(np.unique(everything)) == len(everything)


def test_fresh_resets_are_the_same_whether_drawn_before_or_at_each_step(monkeypatch):
    """But for the numbers drawn: episodes end alike, and no two of them begin alike."""
    env = Marked(limit=3)
    _, _, drawn_before, _ = run(env, env.default_params)
    monkeypatch.setattr("jaxrl.parts.rollout.DRAWN", 0)
    actors = reset(KEY, env, env.default_params, N)
    rolled = jax.jit(lambda: rollout(KEY, env, env.default_params, actors, act, T))()
    for steps in (drawn_before, rolled[1]):
        obs, ended = starts(steps)
        assert len(np.unique(obs[ended])) == ended.sum() == 3 * N
        np.testing.assert_array_equal(steps.truncated, drawn_before.truncated)
        np.testing.assert_array_equal(steps.reward, drawn_before.reward)
    assert not np.isin(starts(rolled[1])[0][ended], starts(drawn_before)[0][ended]).any()


def test_a_step_is_the_environments_own():
    """CartPole's dynamics know no chance: beside gymnax's `step`, through resets."""
    env, params = gymnax.make("CartPole-v1")
    actors = reset(KEY, env, params, N)

    @jax.jit
    def both(key, actors, action):
        ours = step_envs(draw(key, env, params, (N,)), env, params, actors, action)
        keys = jax.random.split(key, N)
        return ours, jax.vmap(env.step, (0, 0, 0, None))(keys, actors.env_state, action, params)

    ends = 0
    for t, key in enumerate(jax.random.split(KEY, 60)):
        (state, obs, *signals, final_obs, _), theirs = both(
            key, actors, jnp.full(N, t % 7 < 5, int)
        )
        np.testing.assert_array_equal(signals, theirs[2:5])
        np.testing.assert_allclose(final_obs, theirs[-1]["final_observation"], atol=1e-6)
        done = np.asarray(signals[1] | signals[2])
        for x, y in ((obs, theirs[0]), (state.x, theirs[1].x)):
            np.testing.assert_allclose(x[~done], y[~done], atol=1e-6)
        assert (np.abs(obs[done]) <= 0.05).all()  # a start of CartPole's
        ends += done.sum()
        actors = actors._replace(env_state=state, obs=obs)
    assert ends >= N


def test_noise_takes_the_place_of_keys():
    env = Marked()
    actors = reset(KEY, env, env.default_params, N)
    noise = jnp.arange(T * N).reshape(T, N) % 2
    _, steps, _ = rollout(
        KEY,
        env,
        env.default_params,
        actors,
        lambda obs, noise: (noise, noise, ()),
        T,
        noise=lambda key, num_steps: noise[:num_steps],
    )
    np.testing.assert_array_equal(steps.action, noise)


def test_a_pool_is_drawn_anew_for_each_rollout():
    env = Marked("pool")
    params = env.default_params

    def one(key):
        return rollout(key, env, params, reset(KEY, env, params, N), act, T)[1]

    pools = [
        np.unique(obs[began])
        for key in jax.random.split(KEY)
        for obs, began in [starts(jax.jit(one)(key))]
    ]
    assert not np.isin(pools[0], pools[1]).any()


def test_episode_statistics_against_a_loop():
    env = Marked(limit=2)
    params = env.default_params

    @jax.jit
    def two_rollouts():
        actors = reset(KEY, env, params, N)
        actors, first, episodes = rollout(KEY, env, params, actors, act, 5)
        return first, episodes, *rollout(KEY, env, params, actors, act, 6)[1:]

    first, first_episodes, second, second_episodes = two_rollouts()
    returned, lasted = np.zeros(N), np.zeros(N)
    for steps, episodes in [(first, first_episodes), (second, second_episodes)]:
        count, returns, lengths = np.zeros(N), np.zeros(N), np.zeros(N)
        for t in range(len(steps.reward)):
            returned, lasted = returned + steps.reward[t], lasted + 1
            done = np.asarray(steps.terminated | steps.truncated)[t]
            count, returns, lengths = (
                total + np.where(done, x, 0)
                for total, x in [(count, 1), (returns, returned), (lengths, lasted)]
            )
            returned, lasted = np.where(done, 0, returned), np.where(done, 0, lasted)
        np.testing.assert_array_equal(episodes[:3], np.stack([count, returns, lengths]))
        metrics = episodes.metrics()
        assert metrics["episodes"] == count.sum()
        assert metrics["episode_return"] == returns.sum() / count.sum()
        assert metrics["episode_length"] == lengths.sum() / count.sum()


def test_statistics_are_nan_where_no_episode_ended():
    env = Marked()
    metrics = run(env, env.default_params, 2)[-1].metrics()
    assert metrics["episodes"] == 0
    assert np.isnan(metrics["episode_return"])
    assert np.isnan(metrics["episode_length"])


@pytest.mark.parametrize("resets", ["fresh", "pool"])
def test_traced_length_is_the_same_as_fewer_steps(resets):
    env = Marked(resets)
    _, actors, steps, episodes = run(env, env.default_params, 6)
    _, traced_actors, traced_steps, traced_episodes = run(env, env.default_params, T, 6)
    assert_same(jax.tree.map(lambda x: x[:6], traced_steps), steps)
    assert_same((traced_actors, traced_episodes), (actors, episodes))
    for rows in jax.tree.leaves(traced_steps):
        assert rows.shape[0] == T
        assert not rows[6:].any()


class Loose(Environment):
    """Returns Python numbers, and bools as integers, as a user's environment may."""

    @struct.dataclass
    class State:
        time: int = 0
        total: float = 0.0

    @struct.dataclass
    class Params:
        max_steps_in_episode: int = 3

    @property
    def default_params(self):
        return self.Params()

    def reset_env(self, key, params):
        return jnp.asarray(0.0)[None], self.State()

    def step_env(self, key, state, action, params):
        state = self.State(state.time + 1, state.total + 0.5)
        return jnp.asarray(state.total)[None], state, 1, state.time < 0, {}

    def action_space(self, params):
        return spaces.Discrete(2)


def test_weakly_typed_environments_work():
    env = Loose()
    _, actors, steps, _ = run(env, env.default_params)
    assert steps.reward.dtype == jnp.float32
    assert steps.terminated.dtype == steps.truncated.dtype == bool
    assert not any(x.weak_type for x in jax.tree.leaves((actors, steps)))
    np.testing.assert_array_equal(steps.truncated[:, 0], np.arange(1, T + 1) % 3 == 0)
    np.testing.assert_array_equal(steps.obs[:4, 0, 0], [0, 0.5, 1.0, 0])


def test_a_plain_gymnax_environment_works_as_it_is():
    env, params = gymnax.make("CartPole-v1")
    _, actors, steps, episodes = run(env, params, 40)
    assert steps.obs.shape == (40, N, 4)
    assert episodes.ended.sum() > 0
    assert jnp.isfinite(actors.obs).all()
