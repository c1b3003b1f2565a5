"""Second-order actor-critic: its products against explicit Hessians, its step, its trust region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrl
from agents.on_policy.secondorder import SecondOrder
from jaxrl.loops.on_policy import Batch
from jaxrl.parts.distributions import Categorical
from tests.probes import CHOICE, GAMMA, MATCH, ActionChoice, any_of, known_answers, settings

KEY = jax.random.key(0)
INF = float("inf")
CURVATURES = ("surrogate", "log_prob")


class Linear(SecondOrder):
    """A softmax over two logits, linear in the observation, so that all can be written out."""

    def distribution(self, params, obs):
        return Categorical(obs @ params["policy"])


def linear(curvature, **changes):
    options = {"num_minibatches": 1, "curvature": curvature, "max_kl": INF, "damping": 0.5}
    return Linear(ActionChoice(), ActionChoice().default_params, **(options | changes))


@pytest.fixture(scope="module")
def rollout():
    """Weights (2, 2) and a rollout of 200 steps with actions of that policy, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        obs = jnp.asarray(rng.normal(size=(200, 2)))
        weights = jnp.asarray(rng.normal(size=(2, 2)))
        dist = Categorical(obs @ weights)
        action = dist.sample(KEY)
        advantage = jnp.asarray(rng.normal(size=200)) + action
        value = jnp.asarray(rng.normal(size=200))
        batch = Batch(obs, action, dist.log_prob(action), value, advantage, advantage + value)
        return weights, batch


def written_out(curvature, weights, batch):
    """Gradient (4,) and Hessian (4, 4) by a loop over steps, from the softmax's own formulas."""
    obs, action = np.asarray(batch.obs), np.asarray(batch.action)
    advantage, target = np.asarray(batch.advantage), np.asarray(batch.target)
    q = (target - target.min()) / advantage.std()
    advantage = (advantage - advantage.mean()) / advantage.std()
    gradient, hessian = np.zeros(4), np.zeros((4, 4))
    for x, a, weight, positive in zip(obs, action, advantage, q, strict=True):
        probs = np.exp(x @ np.asarray(weights))
        probs /= probs.sum()
        score = np.kron(x, np.eye(2)[a] - probs)
        curve = -np.kron(np.outer(x, x), np.diag(probs) - np.outer(probs, probs))
        gradient += weight * score / len(obs)
        if curvature == "surrogate":
            hessian += weight * (np.outer(score, score) + curve) / len(obs)
        else:
            hessian += positive * curve / len(obs)
    return gradient, hessian


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_step_solves_the_newton_equation_of_the_explicit_hessian(curvature, rollout):
    with jax.enable_x64(True):
        weights, batch = rollout
        agent = linear(curvature, cg_iterations=20)
        new, metrics = jax.jit(agent.improve_policy)(weights, batch, 0.0)
        gradient, hessian = written_out(curvature, weights, batch)
        matrix = 0.5 * np.eye(4) - hessian
        assert np.linalg.eigvalsh(matrix)[0] > 0
        step = np.linalg.solve(matrix, gradient)
        assert np.abs(step).max() > 0.01
        np.testing.assert_allclose(np.ravel(new - weights), step, rtol=1e-5, atol=1e-8)
        assert (metrics["negative_curvature"], metrics["step_share"]) == (0, 1)


def test_without_damping_the_surrogate_shows_its_negative_curvature(rollout):
    with jax.enable_x64(True):
        weights, batch = rollout
        batch = batch._replace(advantage=-batch.advantage)
        _, hessian = written_out("surrogate", weights, batch)
        assert np.linalg.eigvalsh(-hessian)[0] < 0
        agent = linear("surrogate", damping=0.0, cg_iterations=20)
        _, metrics = jax.jit(agent.improve_policy)(weights, batch, 0.0)
        assert metrics["negative_curvature"] == 1


def test_the_trust_region_shortens_the_step_and_keeps_its_direction(rollout):
    with jax.enable_x64(True):
        weights, batch = rollout
        free, short = (
            jax.jit(linear("surrogate", max_kl=k).improve_policy)(weights, batch, 0.0)
            for k in (INF, 1e-4)
        )
        share = float(short[1]["step_share"])
        assert 0 < share < 0.5
        np.testing.assert_allclose(short[0] - weights, share * (free[0] - weights), rtol=1e-9)
        assert short[1]["kl"] == pytest.approx(1e-4, rel=0.05)  # the model is exact for short steps


def test_the_share_of_the_step_falls_linearly(rollout):
    with jax.enable_x64(True):
        weights, batch = rollout
        agent = linear("surrogate", actor_learning_rate=0.8, actor_learning_rate_end=0.5)
        steps = [jax.jit(agent.improve_policy)(weights, batch, p)[0] - weights for p in (0.0, 1.0)]
        np.testing.assert_allclose(steps[1], 0.5 * steps[0], rtol=1e-9)


@pytest.mark.parametrize("continuous", [False, True])
def test_products_of_a_network_are_those_of_its_explicit_hessian(continuous):
    env = ActionChoice(continuous)
    agent = SecondOrder(env, env.default_params, hidden_sizes=(3,), num_envs=8, num_steps=8)
    policy = agent.init_params(KEY, jnp.ones(1))["policy"]
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(16, 1)), jnp.float32)
    dist = agent.distribution({"policy": policy}, obs)
    action = dist.sample(KEY)
    advantage = jnp.asarray(rng.normal(size=16), jnp.float32)
    batch = Batch(obs, action, dist.log_prob(action), advantage, advantage, advantage)
    flat, unravel = ravel_pytree(policy)

    def at(policy):
        return agent.distribution({"policy": policy}, obs)

    def objective(flat):  # the likelihood ratio, written out
        log_prob = agent.distribution({"policy": unravel(flat)}, obs).log_prob(action)
        return (jnp.exp(log_prob - dist.log_prob(action)) * advantage).mean()

    direction = jnp.cos(jnp.arange(flat.size))
    product = agent.hessian_product(policy, at, batch, advantage, advantage)
    actual = ravel_pytree(jax.jit(product)(unravel(direction)))[0]
    expected = jax.jit(jax.hessian(objective))(flat) @ direction
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(actual, expected, atol=1e-6)


PROBES = known_answers()


@pytest.mark.slow
@pytest.mark.parametrize("curvature", CURVATURES)
def test_policy_finds_the_best_action(curvature):
    agent = SecondOrder(
        any_of(PROBES),
        any_of(PROBES).default_params,
        total_steps=64 * 150,
        num_envs=8,
        num_steps=8,
        num_epochs=4,
        num_minibatches=2,
        learning_rate=1e-2,
        gamma=GAMMA,
        hidden_sizes=(8,),
        max_kl=0.02,
        curvature=curvature,
    )
    population = jaxrl.sweep(agent, settings(PROBES))
    for i in (CHOICE, MATCH):
        run = population[i]
        best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
        np.testing.assert_array_equal(best.returns, np.ones(32))
