"""A2C: its gradient, its optimisers, known answers on probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.on_policy.a2c import A2C, Batch
from tests.helpers import assert_close
from tests.probes import GAMMA, MATCH, ActionChoice, any_of, known_answers, settings

KEY = jax.random.key(0)


def a2c(env, iterations=300, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
        "entropy_coef": 0.0,
        "optimizer": "adam",
    } | changes
    return A2C(env, env.default_params, total_steps=64 * iterations, **options)


def minibatch(agent, size=16):
    """Random observations, advantages and targets; actions of the policy."""
    params = jax.jit(agent.init_params)(KEY, jnp.zeros(1))
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(size, 1)), jnp.float32)
    dist = agent.distribution(params, obs)
    action = dist.sample(KEY)
    numbers = [jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(3)]
    return params, Batch(obs, action, dist.log_prob(action), *numbers)


@pytest.mark.parametrize("continuous", [False, True])
def test_gradient_is_that_of_the_paper(continuous):
    """grad log pi A + the entropy's, and that of half the squared error (section 4.3)."""
    agent = a2c(ActionChoice(continuous), value_coef=0.7, entropy_coef=0.3)
    params, batch = minibatch(agent)

    def each(params, obs, action, advantage, target):
        dist = agent.distribution(params, obs)
        value = agent.value(params, obs)
        gain = dist.log_prob(action) * advantage + 0.3 * dist.entropy()
        return -gain + 0.7 * 0.5 * (target - value) ** 2

    of_each = jax.vmap(jax.grad(each), in_axes=(None, 0, 0, 0, 0))
    expected = jax.jit(of_each)(params, batch.obs, batch.action, batch.advantage, batch.target)
    expected = jax.tree.map(lambda x: x.mean(axis=0), expected)
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(agent.loss, has_aux=True))(params, batch)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(gradient["actor"]))
    assert_close(gradient, expected, 1e-6)
    parts = metrics["policy_loss"] + 0.7 * metrics["value_loss"] - 0.3 * metrics["entropy"]
    assert loss == pytest.approx(float(parts), rel=1e-6)


def test_one_step_of_each_optimiser():
    """Of a gradient of 1: RMSprop with a mean of squares of 1 at the start, and Adam; clipped."""
    agent = a2c(ActionChoice(), learning_rate=0.5, max_grad_norm=float("inf"))

    def step(agent, progress=0.0):
        optimizer, params = agent.make_optimizer(progress), jnp.zeros(())
        return -float(optimizer.update(jnp.ones(()), optimizer.init(params))[0])

    rmsprop = agent.replace(optimizer="rmsprop")
    assert step(agent) == pytest.approx(0.5, rel=1e-4)
    assert step(rmsprop) == pytest.approx(0.5, rel=1e-4)
    assert step(rmsprop, 0.5) == pytest.approx(0.25, rel=1e-4)
    squares = 0.99 * 1 + 0.01 * 0.2**2
    clipped = step(rmsprop.replace(max_grad_norm=0.2))
    assert clipped == pytest.approx(0.5 * 0.2 / squares**0.5, rel=1e-4)


PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, all in one program."""
    agent = a2c(any_of(PROBES), iterations=1500, entropy_coef=0.001)
    return jaxrl.sweep(agent, settings(PROBES))


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROBES)))
def test_values_reach_the_known_answer(population, i):
    run = population[i]
    observations = jnp.asarray(PROBES[i].observations)[:, None]
    actual = run.agent.value(run.state.params, observations)
    np.testing.assert_allclose(actual, np.max(PROBES[i].q, axis=1), rtol=0.01, atol=0.1)


@pytest.mark.slow
def test_policy_finds_the_best_action(population):
    run = population[MATCH]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))
