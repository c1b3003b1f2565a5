"""Guidance: the sampler it leaves alone, the tilt of one normal, and the density of its samples."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.diffusion.guidance import Guidance
from envs_jax.diffusion import FURTHEST, Ring
from tests.probes import Match

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
GOAL = jnp.array([0.6, -0.8])
ONE, RING = Ring(modes=1, steps=3), Ring(modes=3, steps=3)
STD, TEMPERATURE = 0.4, 0.8


def guidance(env, **changes):
    sizes = {"num_paths": 64, "hidden_sizes": (4,), "temperature": TEMPERATURE}
    return Guidance(env, env.default_params, **{**sizes, **changes})


def filled(agent):
    """Parameters that steer."""
    shapes = jax.eval_shape(agent.init, KEY).params

    def fill(path, x):
        seed = sum(map(ord, jax.tree_util.keystr(path)))
        return 0.1 * jax.random.normal(jax.random.key(seed), x.shape, x.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


class Exact(Guidance):
    """The best control where the data is one normal: the tilt shifts every x_0 | x_k alike."""

    def act(self, params, obs):
        step, goal = obs[..., 2:-2], obs[..., -2:]
        angle = jnp.pi / 2 * (1 - step.argmax(-1) / self.env.num_steps)
        variance = 1 / (1 / STD**2 + 1 / jnp.tan(angle) ** 2)  # of x_0 given x_k
        shift = jnp.sqrt(variance)[..., None] * goal / self.temperature
        return jnp.concatenate([shift / FURTHEST, jnp.zeros_like(shift)], axis=-1)


@pytest.mark.parametrize("env", [ONE, RING])
def test_no_control_costs_nothing_and_leaves_the_samples(env):
    agent = guidance(env)
    zeros = jax.tree.map(jnp.zeros_like, agent.init(KEY).params)
    goals = jnp.broadcast_to(GOAL, (64, 2))
    _, cost = agent.paths(zeros, goals, KEY)
    np.testing.assert_array_equal(cost, 0)
    # A temperature without end asks for the data: the sampler's own samples, exact for one normal.
    kl = agent.replace(temperature=1e9).tilted_kl(zeros, GOAL)
    assert abs(float(kl)) < 1e-5 if env is ONE else 0.01 < float(kl) < 1
    assert float(agent.tilted_kl(zeros, GOAL)) > float(kl) + 0.05


def test_the_tilt_of_one_normal():
    """What the best control costs is KL(tilted || data), and it gives the density wanted."""
    agent = Exact(ONE, ONE.default_params, num_paths=4096, temperature=TEMPERATURE)
    x, cost = agent.paths((), jnp.broadcast_to(GOAL, (4096, 2)), KEY)
    np.testing.assert_allclose(cost, STD**2 / (2 * TEMPERATURE**2), rtol=1e-4)
    assert abs(float(agent.tilted_kl((), GOAL))) < 1e-5
    mean = np.array([2.0, 0.0]) + STD**2 * np.asarray(GOAL) / TEMPERATURE
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(x.std(axis=0), STD, atol=0.02)
    # Then the bound is temperature x log Z, and no less.
    _, log_partition = ONE.tilted(GOAL, TEMPERATURE, ONE.default_params)
    bound = float(GOAL @ mean) - TEMPERATURE * float(cost.mean())
    np.testing.assert_allclose(bound, TEMPERATURE * float(log_partition), rtol=1e-4)


def test_the_gradient_vanishes_at_the_best_control():
    """Along the path: of the bound by a common shift of all controls."""

    def bound(by):
        class Shifted(Exact):
            def act(self, params, obs):
                return super().act(params, obs) + by

        agent = Shifted(ONE, ONE.default_params, num_paths=512, temperature=TEMPERATURE)
        x, cost = agent.paths((), jnp.broadcast_to(GOAL, (512, 2)), KEY)
        return (x @ GOAL - TEMPERATURE * cost).mean()

    gradient = jax.grad(bound)
    by = jnp.array([0.05, 0.05, 0.0, 0.0])
    np.testing.assert_allclose(gradient(jnp.zeros(4))[:2], 0, atol=1e-4)
    assert np.abs(gradient(by)[:2]).max() > 0.1


def test_the_density_is_that_of_the_paths_and_of_episodes():
    """Mean, spread and cost of samples: by quadrature, along paths, and by the environment."""
    agent = guidance(RING, num_paths=20_000)
    params, env_params = filled(agent), RING.default_params
    axis = np.asarray(RING.axis(env_params), np.float64)
    density = np.asarray(agent.density(params, GOAL), np.float64)
    mass = density * (axis[1] - axis[0]) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    mean = np.array([mass.sum(1) @ axis, mass.sum(0) @ axis])
    square = np.array([mass.sum(1) @ axis**2, mass.sum(0) @ axis**2])
    x, cost = jax.jit(agent.paths)(params, jnp.broadcast_to(GOAL, (20_000, 2)), KEY)
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose((x**2).mean(axis=0), square, atol=0.06)
    assert float(cost.mean()) > 0.01

    @jax.vmap
    def episode(key):
        act = agent.policy(agent.init(KEY)._replace(params=params))
        start_key, *keys = jax.random.split(key, 4)
        _, state = RING.reset_env(start_key, env_params)
        state = state.replace(goal=GOAL)
        costs = 0.0
        for k in keys:
            obs = RING.observe(state.x, state.time, state.goal, env_params)
            _, state, reward, done, info = RING.step_env(k, state, act(obs, k), env_params)
            costs += info["path_cost"]
        return state.x, costs, reward, done

    ends, costs, reward, done = jax.jit(episode)(jax.random.split(KEY, 10_000))
    assert bool(done.all())
    np.testing.assert_allclose(ends.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(costs.mean(), cost.mean(), rtol=0.03)
    np.testing.assert_allclose(reward, ends @ GOAL, rtol=1e-4, atol=1e-5)


def test_samples_outside_the_grid_leave_no_divergence():
    class Far(Exact):
        def act(self, params, obs):
            return jnp.ones((*obs.shape[:-1], 4))

    agent = Far(RING, RING.default_params, num_paths=4)
    assert np.isnan(agent.tilted_kl((), GOAL))


def test_metrics():
    agent = guidance(RING, measure_every=3)
    state = agent.init(KEY)
    step = jax.jit(agent.step)
    kls = []
    for t in range(4):
        state, metrics = step(state, jnp.int32(t))
        kls.append(float(metrics["tilted_kl"]))
        expected = TEMPERATURE * metrics["penalty"] - metrics["episode_return"]
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(kls).tolist() == [True, False, False, True]
    assert float(metrics["episode_length"]) == 3
    assert float(metrics["episodes"]) == 64
    assert "tilted_kl" not in jax.eval_shape(guidance(RING).step, state, jnp.int32(0))[1]


@pytest.mark.parametrize(
    ("env", "changes", "line"),
    [
        (Match(continuous=True), {}, "has no num_steps: it steers diffusion samplers"),
        (RING, {"num_paths": 0}, "guidance: num_paths=0 is outside"),
        (RING, {"temperature": 0.0}, "guidance: temperature=0.0 is outside"),
    ],
)
def test_refuses(env, changes, line):
    with pytest.raises(ValueError, match=re.escape(line)) as error:
        guidance(env, **changes)
    assert "\n" not in str(error.value)


def test_measures_in_two_dimensions_alone():
    class Solid(Ring):
        dimensions = 3

    with pytest.raises(ValueError, match="measure_every=5 must be 0 where samples have 3 dim"):
        guidance(Solid(), measure_every=5)


@pytest.mark.slow
def test_learns_to_sample_what_is_wanted():
    env = Ring(modes=1, steps=4)
    agent = Guidance(env, env.default_params, num_paths=256, hidden_sizes=(32,), learning_rate=0.01)
    run = jaxrl.train(agent.replace(total_steps=256 * 200), 0)
    measure = jax.jit(lambda agent, params: agent.tilted_kl(params, GOAL))
    before = float(measure(agent, jax.tree.map(jnp.zeros_like, run.state.params)))
    after = float(measure(agent, run.state.params))
    assert after < 0.02 * before, (before, after)
