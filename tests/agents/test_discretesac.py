"""Discrete SAC: its expectations by enumeration of the actions, its optimum in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.discretesac import DiscreteSAC, soft_value
from jaxrl import Masked, masks
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.replay import Batch
from tests.probes import GAMMA, MATCH, Match, any_of, known_answers, settings

KEY = jax.random.key(0)
ENV = Match()
SIZE = 16
LOGITS = np.array([[0.3, -2.0, 1.5, 0.7], [9.0, 0.0, 0.0, -9.0]])
Q = np.array([[1.0, 5.0, -2.0, 0.5], [3.0, -1.0, 8.0, 2.0]])
MASK = np.array([[True, False, True, True], [False, True, False, True]])


def make(env=ENV, **changes):
    options = {"hidden_sizes": (3,), "learning_rate": 1e-2, "total_steps": 8000}
    return DiscreteSAC(env, env.default_params, **options | changes)


def enumerated(logits, q, temperature, mask):
    """V of one state, a sum over the actions that may be taken."""
    left = np.flatnonzero(mask)
    weights = np.exp(logits[left] - logits[left].max())
    probs = weights / weights.sum()
    return sum(p * (q[a] - temperature * np.log(p)) for p, a in zip(probs, left, strict=True))


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_value_is_the_sum_over_actions(mask):
    logits, q = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(Q, jnp.float32)
    seen = None if mask is None else jnp.asarray(mask)
    found = soft_value(Categorical(masks.masked(logits, seen)), q, 0.7)
    rows = np.ones_like(MASK) if mask is None else mask
    expected = [enumerated(*row[:2], 0.7, row[2]) for row in zip(LOGITS, Q, rows, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_best_policy_is_the_softmax_of_q(mask):
    """V is temperature x log-sum-exp(Q / temperature) there, and nothing pulls away from it.

    Its gradient by a logit is pi(a) [Q(a) - temperature log pi(a) - V], nothing where masked.
    """
    q, temperature = jnp.asarray(Q, jnp.float32), 2.0
    seen = None if mask is None else jnp.asarray(mask)
    rows = np.ones_like(MASK) if mask is None else mask

    def value(logits):
        return soft_value(Categorical(masks.masked(logits, seen)), q, temperature).sum()

    best, gradient = jax.value_and_grad(value)(q / temperature)
    parts = np.where(rows, np.exp(Q / temperature), 0).sum(axis=1)
    np.testing.assert_allclose(best, temperature * np.log(parts).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros_like(Q), atol=1e-5)
    gradient = jax.grad(value)(jnp.asarray(LOGITS, jnp.float32))
    for i in range(2):
        v = enumerated(LOGITS[i], Q[i], temperature, rows[i])
        weights = np.where(rows[i], np.exp(LOGITS[i]), 0)
        pi = weights / weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(pi > 0, pi * (Q[i] - temperature * np.log(pi) - v), 0)
        np.testing.assert_allclose(gradient[i], expected, rtol=1e-4, atol=1e-5)


def test_a_cold_start_with_masks_stays_finite():
    """A large temperature times the log-probability of what is never taken is no number."""
    dist = Categorical(masks.masked(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(MASK)))
    gradient = jax.grad(lambda x: soft_value(Categorical(x), jnp.asarray(Q), 50.0).sum())
    assert np.isfinite(gradient(dist.logits)).all()


def batch_of():
    rng = np.random.default_rng(0)
    obs, reward, next_obs = jnp.asarray(rng.normal(size=(3, SIZE)), jnp.float32)
    ended, valid = jnp.asarray(rng.random((2, SIZE)) < 0.5)
    action = jnp.asarray(rng.integers(0, 2, SIZE))
    return Batch(obs[:, None], action, reward, ended, next_obs[:, None], valid)


def forward(params, x):
    """A network of one hidden layer in double precision."""
    layers = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
    hidden = np.maximum(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]


def test_the_losses_are_those_of_a_plain_loop():
    agent = make(gamma=0.9, temperature=0.3, reward_scale=2.0)
    learner = agent.init_learner(KEY, jnp.ones(1))
    learner = learner._replace(actor=jax.tree.map(lambda x: x + 0.5, learner.actor))
    learner = learner._replace(target_critics=jax.tree.map(lambda x: 2 * x, learner.critics))
    batch = batch_of()
    after, metrics = jax.jit(agent.update)(learner, batch, KEY, 0)
    every, losses, values = np.ones(2, bool), [], []
    for i in range(SIZE):
        obs, next_obs = np.asarray(batch.obs[i]), np.asarray(batch.next_obs[i])
        target = 2 * float(batch.reward[i])
        if not batch.terminated[i]:
            next_q = np.min([forward(c, next_obs) for c in learner.target_critics], axis=0)
            target += 0.9 * enumerated(forward(learner.actor, next_obs), next_q, 0.3, every)
        if batch.valid[i]:
            taken = [forward(c, obs)[batch.action[i]] for c in learner.critics]
            losses.append(sum(0.5 * (q - target) ** 2 for q in taken))
        q = np.min([forward(c, obs) for c in after.critics], axis=0)
        values.append(enumerated(forward(learner.actor, obs), q, 0.3, every))
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor_loss"], -np.mean(values), rtol=1e-5)


@pytest.mark.parametrize(("share", "sign"), [(0.1, -1), (1.0, 1)])
def test_the_temperature_moves_towards_its_target(share, sign):
    """The policy's entropy is above a tenth of log 2 and below log 2."""
    agent = make(target_entropy=share, temperature_learning_rate=0.1)
    learner = agent.init_learner(KEY, jnp.ones(1))
    learner = learner._replace(actor=jax.tree.map(lambda x: 30 * x, learner.actor))
    after, metrics = jax.jit(agent.update)(learner, batch_of(), KEY, 0)
    assert 0.2 * np.log(2) < metrics["entropy"] < 0.99 * np.log(2)
    assert float(after.log_temperature - learner.log_temperature) * sign > 0.09


def test_uniform_entropy_is_that_of_the_actions_left():
    agent = make()
    assert float(agent.uniform_entropy(jnp.ones((2, 1)))) == pytest.approx(np.log(2))
    obs = Masked(jnp.ones((2, 1)), jnp.asarray(MASK))
    assert float(agent.uniform_entropy(obs)) == pytest.approx((np.log(3) + np.log(2)) / 2)


@pytest.mark.slow
def test_reaches_the_known_answers():
    """With little weight on the entropy values are those of the best actions."""
    rows = known_answers()
    sizes = {"num_envs": 8, "num_updates": 2, "batch_size": 64, "buffer_size": 4096}
    sizes |= {"learning_starts": 256, "learning_rate": 3e-3, "hidden_sizes": (16,), "tau": 0.05}
    sizes |= {"gamma": GAMMA, "temperature": 0.02, "temperature_learning_rate": 0.0}
    env = any_of(rows)
    agent = DiscreteSAC(env, env.default_params, **sizes, total_steps=8 * 2500)
    population = jaxrl.sweep(agent, settings(rows))
    for i, row in enumerate(rows):
        run = population[i]
        q = run.agent.q_values(run.state.learner.critics, jnp.array(row.observations)[:, None])
        actual = np.asarray(q.mean(axis=0)).max(axis=1)
        np.testing.assert_allclose(actual, np.max(row.q, axis=1), rtol=0.05, atol=0.1)
    best = jaxrl.evaluate(population[MATCH].agent, population[MATCH].state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))
