"""GDPO: its rewards, its loss under each covariance rule, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.sequences.gdpo import GDPO
from envs_jax.sequences import Pareto, Parity
from jaxrl.loops.sequence import Batch

KEY = jax.random.key(0)
PARITY = Parity(bits=2)
TINY = {"num_prompts": 4, "group_size": 4, "network": "tabular", "total_steps": 160}
KL = {"cov_rule": "kl", "cov_share": 0.3, "num_minibatches": 2}
ADVANTAGE = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)


def made(env=PARITY, **changes):
    return GDPO(env, env.default_params, **TINY | changes)


@pytest.fixture(scope="module")
def written():
    """A state with logits that are none of them 0, and answers (4, 4, ...) of its policy."""
    agent = made()

    @jax.jit
    def write(key):
        state = agent.init(key)
        noise = jax.random.normal(key, state.params["params"]["rows"].shape)
        state = state._replace(params={"params": {"rows": noise}})
        return state, agent.answers(state, agent.fresh_prompts(key), key)

    return write(KEY)


@pytest.fixture(scope="module")
def batch(written):
    """Those answers, flattened, as if a policy some way off had written them."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), written[1])
    noise = 0.4 * jax.random.normal(jax.random.key(1), flat.log_prob.shape)
    flat = flat._replace(log_prob=flat.log_prob + noise)
    return Batch(flat, jnp.broadcast_to(ADVANTAGE[:, None], flat.log_prob.shape))


def rows_of(agent, params, batch):
    """The tokens that count: (answer, place, log-probability, ratio, advantage)."""
    new = jax.jit(agent.distribution)(params, batch.answers.prompt, batch.answers.tokens)
    new = np.asarray(new.log_prob(batch.answers.tokens), np.float64)
    old, mask = (np.asarray(x, np.float64) for x in (batch.answers.log_prob, batch.answers.mask))
    return [
        (*place, new[place], math.exp(new[place] - old[place]), float(ADVANTAGE[place[0]]))
        for place in np.ndindex(mask.shape)
        if mask[place]
    ]


# Advantages -------------------------------------------------------------------------------------


def z(x):
    return (x - x.mean()) / (x.std() + 1e-4)


@pytest.mark.parametrize("normalize_batch", [False, True])
def test_advantages_from_the_channels_of_the_verifier(written, normalize_batch):
    state, answers = written
    agent = made(normalize_batch=normalize_batch)
    advantage, _, metrics = jax.jit(agent.advantages)(state, answers, KEY)
    rewards = np.asarray(answers.verdict.rewards, np.float64)
    expected = np.array([sum(z(group[:, c]) for c in range(2)) for group in rewards])
    assert np.abs(expected).max() > 1.1
    expected = z(expected) if normalize_batch else expected
    np.testing.assert_allclose(advantage, expected, atol=1e-4)
    answered = np.asarray(answers.verdict.answer).ravel().tolist()
    most = max(map(answered.count, set(answered))) / 16
    assert float(metrics["commonest_share"]) == pytest.approx(most)


def test_advantages_from_its_own_rewards(written):
    state, answers = written
    weights = {"agreement_weight": 0.5, "certainty_weight": 2.0}
    agent = made(rewards="intrinsic", normalize_batch=False, **weights)
    advantage, _, metrics = jax.jit(agent.advantages)(state, answers, KEY)
    flat = [x.reshape(16, -1) for x in (answers.prompt, answers.tokens)]
    log_probs = jax.nn.log_softmax(jax.jit(agent.distribution)(state.params, *flat).logits)
    log_probs = np.asarray(log_probs, np.float64).reshape(4, 4, 3, 3)
    expected, certainties = np.zeros((4, 4)), np.zeros((4, 4))
    for n in range(4):
        answered = np.asarray(answers.verdict.answer[n]).tolist()
        agree = np.array([answered.count(x) / 4 for x in answered])
        for g in range(4):
            counts = np.asarray(answers.mask[n, g]) == 1
            certainties[n, g] = np.mean(-log_probs[n, g][counts].mean(-1) - math.log(3))
        expected[n] = 0.5 * z(agree) + 2 * z(certainties[n])
    np.testing.assert_allclose(advantage, expected, atol=1e-3)
    assert float(metrics["self_certainty"]) == pytest.approx(certainties.mean(), rel=1e-4)


# The loss ---------------------------------------------------------------------------------------


def covariances(rows):
    advantage, log_prob = (np.array([row[i] for row in rows]) for i in (4, 2))
    return (advantage - advantage.mean()) * (log_prob - log_prob.mean())


def test_the_plain_loss(written, batch):
    agent = made()
    loss, metrics = jax.jit(agent.loss)(written[0].params, batch, KEY)
    rows = rows_of(agent, written[0].params, batch)
    gains = [min(r * a, min(max(r, 0.8), 1.2) * a) for *_, r, a in rows]
    assert float(loss) == pytest.approx(-np.mean(gains), rel=1e-4)
    assert 0 < float(metrics["clip_fraction"]) < 1
    assert float(metrics["covariance"]) == pytest.approx(covariances(rows).mean(), rel=1e-4)


def test_kl_cov_penalises_the_top_tokens(written, batch):
    agent = made(**KL, cov_coef=0.7)
    loss, metrics = jax.jit(agent.loss)(written[0].params, batch, KEY)
    rows = rows_of(agent, written[0].params, batch)
    number = int(0.3 * len(rows))
    chosen = set(np.argsort(-covariances(rows))[:number].tolist())
    penalty = [0.7 * abs(math.log(row[3])) * (i in chosen) for i, row in enumerate(rows)]
    gains = [r * a for *_, r, a in rows]
    assert float(loss) == pytest.approx(-np.mean(gains) + np.mean(penalty), rel=1e-4)
    assert float(metrics["chosen_fraction"]) == pytest.approx(number / len(rows))
    assert np.mean(penalty) > 0.01


def test_kl_cov_of_no_weight_is_the_plain_loss(written, batch):
    """Plain: neither clipped nor penalised."""
    free = made(**KL, cov_coef=0.0)
    plain = made(clip_low=1.0, clip_high=1e6)
    one, other = (
        jax.jit(jax.value_and_grad(agent.loss, has_aux=True))(written[0].params, batch, KEY)
        for agent in (free, plain)
    )
    assert float(one[0][0]) == float(other[0][0])
    np.testing.assert_array_equal(one[1]["params"]["rows"], other[1]["params"]["rows"])
    assert np.abs(one[1]["params"]["rows"]).max() > 0.01


def test_clip_cov_takes_the_gradient_of_some_tokens(written, batch):
    params = written[0].params
    options = {"cov_rule": "clip", "cov_share": 1.0, "cov_low": 0.2, "cov_high": 1.0}
    agent = made(**options)
    loss, metrics = jax.jit(agent.loss)(params, batch, KEY)
    rows = rows_of(agent, params, batch)
    within = [0.2 <= c <= 1.0 for c in covariances(rows)]
    assert 0 < sum(within) < len(rows)
    gains = [
        (not out) * min(r * a, min(max(r, 0.8), 1.2) * a)
        for out, (*_, r, a) in zip(within, rows, strict=True)
    ]
    assert float(loss) == pytest.approx(-np.mean(gains), rel=1e-4)
    assert float(metrics["chosen_fraction"]) == pytest.approx(np.mean(within))


# What does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"cov_rule": "kl"}, "cov_rule='kl' has no effect with one gradient step"),
        ({"agreement_weight": 2.0}, "agreement_weight=2.0 has no effect with rewards=verified"),
        ({"cov_coef": 1.0}, "cov_coef=1.0 has no effect with cov_rule=none"),
        (KL | {"clip_low": 0.1}, "clip_low=0.1 has no effect with cov_rule=kl"),
        ({"env": Pareto(), "network": "gru"}, "takes one number for each channel"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        made(**changes)
