"""POISE: its gradient by enumeration, its probe against least squares, what it may not see."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.sequences.grpo import GRPO
from agents.sequences.poise import POISE, answer_features, ridge_weights, taught
from envs_jax.sequences import Sum
from jaxrl.loops.sequence import Answers, SequenceState
from jaxrl.parts.sequences import Verdict, repeated
from tests.agents.test_grpo import ALL_PROMPTS, expected_reward, far_off, noisy

KEY = jax.random.key(0)
ENV = Sum(digits=2)


def made(cls=POISE, **changes):
    fields = {"num_prompts": 4, "group_size": 2, "network": "tabular", "total_steps": 80}
    return cls(ENV, ENV.default_params, **(fields | changes))


# The gradient, by enumeration -------------------------------------------------------------------

DRAWS = 20_000
# How often each prompt is answered rightly, after the one and after the other scratch token.
RIGHT = (0.02, 0.1), (0.1, 0.9), (0.5, 0.95), (0.9, 0.98)


@pytest.fixture(scope="module")
def start():
    """A policy for which the scratch token matters."""
    state = noisy(made(), scale=0.3)
    rows = state.params["params"]["rows"]
    for (a, b), rights in zip(ALL_PROMPTS.tolist(), RIGHT, strict=True):
        for scratch, right in enumerate(rights):
            row = 6 + 4 * a + 2 * b + scratch  # after 2 rows of one token and 4 of two
            rows = rows.at[row, (a + b) % 2].add(math.log(right / (1 - right)))
    return state._replace(params={"params": {"rows": rows}})


def gradients(agent, state, draws=DRAWS, swapped=False):
    """Estimates of the gradient of the expected reward (draws, D), by a probe that has learnt."""

    def estimate(state, key):
        answers = agent.answers(state, ALL_PROMPTS, key)
        if swapped:
            answers = jax.tree.map(lambda x: x[:, ::-1], answers)
        batch, memory, _ = agent.batch(state, answers, key)
        grads = jax.grad(lambda p: agent.loss(p, batch, key)[0])(state.params)
        return -grads["params"]["rows"].ravel(), memory

    def everything(state, keys):
        def learn(memory, key):
            return estimate(state._replace(memory=memory), key)[1], ()

        memory = agent.init_memory(KEY)
        memory = jax.lax.scan(learn, memory, jax.random.split(jax.random.key(7), 64))[0]
        return jax.vmap(lambda key: estimate(state._replace(memory=memory), key)[0])(keys)

    keys = jax.random.split(KEY, draws)
    return np.asarray(jax.jit(everything)(state, keys), np.float64)


def test_gradients_by_enumeration(start):
    """Unbiased from the other answer, biased from the answer itself; less variance than without."""
    exact = jax.jit(jax.grad(partial(expected_reward, made())))(start.params)
    exact = np.asarray(exact["params"]["rows"], np.float64).ravel()
    options = {"weigh": "sum", "whiten": False, "probe_batches": 64}
    cross = gradients(made(**options), start)
    own = gradients(made(**options, baseline="self", targets="self"), start)
    assert far_off(cross, exact) < 3.5
    assert far_off(own, exact) > 6
    none = made(GRPO, weigh="sum", baseline="none", divide_by_std=False)
    none = gradients(none, start)
    assert cross.var(0).sum() < 0.9 * none.var(0).sum()


def test_the_order_of_a_pair_does_not_matter(start):
    agent = made()
    one, other = (gradients(agent, start, 8, swapped) for swapped in (False, True))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one).max() > 0.01


def test_nothing_is_learnt_through_the_baseline(start):
    agent = made(whiten=False)
    answers = jax.jit(agent.answers)(start, ALL_PROMPTS, KEY)
    probe = agent.init_memory(KEY)
    state = start._replace(memory=probe._replace(weights=probe.weights + 1.0))

    def total(params):
        advantage, memory, _ = agent.advantages(state._replace(params=params), answers, KEY)
        return (advantage**2).sum() + memory.weights.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(start.params)
    assert float(value) > 1
    np.testing.assert_array_equal(gradient["params"]["rows"], 0)


# The probe --------------------------------------------------------------------------------------


def test_features_term_by_term():
    rng = np.random.default_rng(0)
    hidden, entropy = rng.normal(size=(3, 5, 2)), rng.random((3, 3))  # two tokens of prompt
    lengths = (3, 1, 2)
    mask = np.asarray([[float(t < n) for t in range(3)] for n in lengths])
    got = answer_features(*(jnp.asarray(x, jnp.float32) for x in (hidden, entropy, mask)))
    for i, n in enumerate(lengths):
        written, bits = hidden[i, 2 : 2 + n], entropy[i, :n]
        wanted = [hidden[i, :2].mean(0), written.mean(0), written[-1]]
        wanted += [[bits.mean(), bits.max(), bits.std()]]
        np.testing.assert_allclose(got[i], np.concatenate(wanted), atol=1e-6)


def test_the_probe_is_ridge_regression_on_the_last_batches():
    rng = np.random.default_rng(1)
    agent = made(probe_batches=2, ridge=3.0)
    size = agent.init_memory(KEY).weights.size
    assert size == 1 + 3 * 2 + 3
    features = rng.normal(size=(3, 10, 2, size - 1)) + 1
    inputs, y = np.concatenate([np.ones((3, 10, 2, 1)), features], -1), rng.random((3, 10, 2)) + 2
    probe = agent.init_memory(KEY)
    for batch in range(3):
        probe = taught(probe, *(jnp.asarray(x[batch], jnp.float32) for x in (inputs, y)), 3.0)
    # The constant is free: features and targets from their means.
    x, y = features[1:].reshape(-1, size - 1), y[1:].ravel()
    centred = x - x.mean(0)
    slope = np.linalg.solve(centred.T @ centred + 3 * np.eye(size - 1), centred.T @ (y - y.mean()))
    wanted = np.concatenate([[y.mean() - x.mean(0) @ slope], slope])
    np.testing.assert_allclose(probe.weights, wanted, rtol=2e-3, atol=2e-3)


def test_one_feature_that_never_varies_is_no_trouble():
    rows = jnp.ones((6, 3))
    weights = ridge_weights(rows.T @ rows, rows.T @ jnp.full(6, 0.5), 1.0)
    np.testing.assert_allclose(weights, [0.5, 0, 0], atol=1e-6)


def verdicts(reward):
    """Answers with these rewards (N, G), all alike otherwise."""
    reward = jnp.asarray(reward)
    shape = reward.shape
    verdict = Verdict(reward, reward, reward[..., None], reward.astype(jnp.int32))
    prompts = repeated(ALL_PROMPTS[: shape[0]], shape[1]).reshape(*shape, 2)
    ones = jnp.ones((*shape, 2))
    return Answers(prompts, ones.astype(jnp.int32), ones, -ones, ones, -ones, verdict)


@pytest.mark.parametrize(("baseline", "wanted"), [("cross", [0.0, 1]), ("self", [1.0, 0])])
def test_whose_value_is_the_baseline(baseline, wanted, start, monkeypatch):
    """A probe that has learnt before: what this batch teaches it comes too late for this batch."""
    answers = verdicts([[0.0, 1.0], [1.0, 1.0]])
    monkeypatch.setattr(POISE, "features", lambda *_: jnp.eye(4).reshape(2, 2, 4))
    agent = made(whiten=False, baseline=baseline)
    memory = agent.init_memory(KEY)._replace(weights=jnp.asarray([0.0, 0, 1, 0, 0]))
    memory = memory._replace(gram=jnp.zeros((8, 5, 5)), product=jnp.zeros((8, 5)))
    state = SequenceState(KEY, start.params, (), start.params, memory)
    advantage, after, metrics = agent.advantages(state, answers, KEY)
    # Only the second answer to the first prompt has a value, 1.
    np.testing.assert_allclose(advantage, [[-1 + wanted[0], wanted[1]], [1, 1]])
    # Its own reward is not what an answer teaches: the others' is.
    np.testing.assert_allclose(after.product[-1, 1:], [1, 0, 1, 1])
    own = made(targets="self").advantages(state, answers, KEY)[1]
    np.testing.assert_allclose(own.product[-1, 1:], [0, 1, 1, 1])
    # Var R = 3/16. Of the pairs one is (-3/4, 1/4) and one (1/4, 1/4) away from the mean.
    assert float(metrics["explainable_variance"]) == pytest.approx((-3 + 1) / 32 / (3 / 16))
    explained = 1 - np.var([-1 + wanted[0], wanted[1], 1, 1]) / (3 / 16)
    assert float(metrics["explained_variance"]) == pytest.approx(explained)


def test_advantages_are_whitened(start):
    answers = verdicts([[0.0, 1.0], [1.0, 1.0]])
    state = start._replace(memory=made().init_memory(KEY))  # a probe that says nothing yet
    advantage = made().advantages(state, answers, KEY)[0]
    root = 3**0.5
    np.testing.assert_allclose(advantage, [[-root, 1 / root], [1 / root, 1 / root]], rtol=1e-3)
