"""GRPO: its loss against a float64 loop, its gradient by enumeration, its answers."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.sequences.grpo import GRPO
from agents.sequences.sft import SFT
from envs_jax.sequences import Parity, Sum
from jaxrl.loops.sequence import Answers, Batch, SequenceState
from jaxrl.parts.sequences import Verdict, answer_mask, repeated
from tests.probes import Match

KEY = jax.random.key(0)
PARITY, SUM = Parity(bits=2), Sum(digits=2)
TINY = {"num_prompts": 4, "group_size": 2, "width": 8, "total_steps": 80}


def made(cls=GRPO, env=PARITY, **changes):
    fields = TINY | changes
    if fields.get("network") == "tabular":
        del fields["width"]
    return cls(env, env.default_params, **fields)


def noisy(agent, key=KEY, scale=0.7):
    """A state whose parameters are none of them 0."""

    @jax.jit
    def shaken(key):
        state = agent.init(key)
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(key, len(leaves))
        noise = [scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        moved = jax.tree.map(jnp.add, state.params, jax.tree.unflatten(tree, noise))
        return state._replace(params=moved)

    return shaken(key)


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["gru", "transformer", "tabular"])
def test_what_is_written_is_what_is_read(network):
    """Log-probabilities of sampled answers are those of the same answers, given as a whole."""
    agent = made(network=network, temperature=0.8)
    state = noisy(agent)

    @jax.jit
    def both(state):
        answers = agent.answers(state, agent.fresh_prompts(KEY), KEY)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answers)
        dist = agent.distribution(state.params, flat.prompt, flat.tokens)
        return flat, dist.log_prob(flat.tokens), dist.entropy(), answer_mask(flat.tokens, 2)

    flat, log_prob, entropy, mask = jax.tree.map(np.asarray, both(state))
    assert flat.tokens.shape == (8, 3)
    np.testing.assert_array_equal(flat.mask, mask)
    assert 0.34 < mask.mean() < 1
    assert (flat.tokens[mask == 0] == 2).all()
    np.testing.assert_allclose(flat.log_prob * mask, log_prob * mask, atol=1e-5)
    np.testing.assert_allclose(flat.entropy * mask, entropy * mask, atol=1e-5)
    for read_last, length in ((False, 4), (True, 5)):
        hidden = jax.eval_shape(
            lambda: agent.outputs(state.params, *flat[:2], read_last=read_last).hidden  # noqa: B023
        )
        assert hidden.shape[:2] == (8, length)


def test_answers_occur_as_often_as_they_should():
    agent = made(env=SUM, network="tabular")
    state = noisy(agent)
    prompt = jnp.array([[1, 0]])
    tokens = jax.jit(agent.sample, static_argnums=3)(state.params, prompt, KEY, 4000)[0]
    everything, chances = jax.jit(partial(enumerated, agent))(state.params, prompt)
    for answer, chance in zip(everything, chances, strict=True):
        share = (tokens == answer).all(-1).mean()
        assert float(share) == pytest.approx(float(chance), abs=4 * math.sqrt(0.25 / 4000))
    greedy = jax.jit(lambda params: agent.sample(params, prompt, None)[0])(state.params)
    likeliest = jax.jit(agent.distribution)(state.params, prompt, greedy).logits.argmax(-1)
    np.testing.assert_array_equal(greedy, likeliest)


@pytest.mark.parametrize("network", ["gru", "transformer"])
def test_acting_is_writing(network):
    """Token by token in the environment, the greedy policy writes the greedy answer."""
    env, layers = Sum(digits=4), {"layers": 1} if network == "transformer" else {}
    agent = made(env=env, network=network, **layers)
    state, params = noisy(agent, scale=0.7 if network == "gru" else 0.2), env.default_params
    policy = agent.policy(state)

    @jax.jit
    def both(key):
        obs, env_state = env.reset_env(key, params)
        answer = agent.sample(state.params, env_state.prompt[None], None)[0][0]
        taken = []
        for _ in range(2):
            taken.append(policy(obs, key))
            obs, env_state, *_ = env.step_env(key, env_state, taken[-1], params)
        return answer, jnp.stack(taken)

    written, taken = jax.vmap(both)(jax.random.split(KEY, 8))
    np.testing.assert_array_equal(written, taken)
    assert len(np.unique(np.asarray(written), axis=0)) > 1


# The gradient, by enumeration -------------------------------------------------------------------


def enumerated(agent, params, prompt):
    """All answers (K, L) to one prompt (1, P), and their probabilities (K,)."""
    length = agent.env.answer_length
    answers = jnp.asarray(list(itertools.product(range(agent.vocabulary), repeat=length)))
    prompts = repeated(prompt, len(answers))
    log_prob = agent.distribution(params, prompts, answers).log_prob(answers)
    return answers, jnp.exp(log_prob.sum(-1))


ALL_PROMPTS = jnp.asarray(list(itertools.product(range(2), repeat=2)), jnp.int32)
DRAWS, GROUP = 3000, 12
RIGHT = 0.05, 0.3, 0.6, 0.9  # how often each prompt is answered rightly


def expected_reward(agent, params):
    """Over all prompts, each with all its answers."""
    total = 0.0
    for prompt in ALL_PROMPTS[:, None]:
        answers, chances = enumerated(agent, params, prompt)
        verdict = agent.verify(repeated(prompt, len(answers)), answers)
        total += (chances * verdict.reward).sum() / len(ALL_PROMPTS)
    return total


def gradients(agent, state):
    """DRAWS estimates of the gradient of the expected reward (DRAWS, D), as the agent has them."""

    def estimate(key):
        answers = agent.answers(state, ALL_PROMPTS, key)
        batch = agent.batch(state, answers, key)[0]
        return -jax.grad(lambda p: agent.loss(p, batch, key)[0])(state.params)["params"]["rows"]

    keys = jax.random.split(KEY, DRAWS)
    return np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64).reshape(DRAWS, -1)


def far_off(estimates, exact):
    """How many standard errors the mean is away from the exact gradient, where it is furthest."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    moves = error > 1e-9
    np.testing.assert_allclose(exact[~moves], 0, atol=1e-6)
    return np.abs((estimates.mean(0) - exact)[moves] / error[moves]).max()


def test_gradients_by_enumeration():
    """RLOO is unbiased; the mean of the group shrinks the gradient by 1 - 1/G; std turns it.

    Dividing by the deviation weighs prompts that are nearly always or never answered rightly more.
    """
    options = {"env": SUM, "network": "tabular", "group_size": GROUP, "weigh": "sum"}
    rloo = made(**options, baseline="others", divide_by_std=False)
    state = noisy(rloo, scale=0.3)
    rows = state.params["params"]["rows"]
    for (a, b), right in zip(ALL_PROMPTS.tolist(), RIGHT, strict=True):
        for scratch in (0, 1):
            row = 6 + 4 * a + 2 * b + scratch  # after 2 rows of one token and 4 of two
            rows = rows.at[row, (a + b) % 2].add(math.log(right / (1 - right)))
    state = state._replace(params={"params": {"rows": rows}})
    exact = jax.jit(jax.grad(partial(expected_reward, rloo)))(state.params)
    exact = np.asarray(exact["params"]["rows"], np.float64).ravel()
    estimates = {
        "others": gradients(rloo, state),
        "mean": gradients(made(**options, divide_by_std=False), state),
        "none": gradients(made(**options, baseline="none", divide_by_std=False), state),
        "std": gradients(made(**options), state),
    }
    assert far_off(estimates["others"], exact) < 3.5
    assert far_off(estimates["none"], exact) < 3.5
    assert far_off(estimates["mean"] / (1 - 1 / GROUP), exact) < 3.5
    assert far_off(estimates["mean"], exact) > 6
    # No scale makes up for the division by the standard deviation.
    mean = estimates["std"].mean(0)
    scale = (mean @ exact) / (mean @ mean)
    assert far_off(scale * estimates["std"], exact) > 6
    variance = {name: x.var(0).sum() for name, x in estimates.items()}
    assert variance["others"] < variance["none"]


# The loss ---------------------------------------------------------------------------------------


def batch_of(agent, state, advantage, shift=0.4):
    """Answers of the policy as if another one, `shift` away, had written them."""
    answers = jax.jit(lambda state: agent.answers(state, agent.fresh_prompts(KEY), KEY))(state)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answers)
    noise = shift * jax.random.normal(jax.random.key(1), flat.log_prob.shape)
    flat = flat._replace(log_prob=flat.log_prob + noise, reference_log_prob=flat.log_prob - noise)
    return Batch(flat, jnp.broadcast_to(advantage[:, None], flat.log_prob.shape))


ADVANTAGE = jnp.asarray([1.0, -1.0, 0.5, 2.0, -0.5, 1.5, -2.0, 0.0])


def share_kept(ratio, advantage, low=0.1, high=0.15, noise=0.2):
    """The chance that noise brings a ratio beyond the range back into it."""
    if advantage > 0 and ratio > 1 + high:
        return min(max(((1 + high) / ratio - (1 - noise)) / (2 * noise), 0), 1)
    if advantage < 0 and ratio < 1 - low:
        return min(max(((1 + noise) - (1 - low) / ratio) / (2 * noise), 0), 1)
    return 0.0


@pytest.mark.parametrize("ratio_of", ["token", "answer"])
@pytest.mark.parametrize("weigh", ["token", "answer", "sum"])
def test_the_loss_term_by_term(ratio_of, weigh):
    agent = made(
        network="tabular",
        ratio_of=ratio_of,
        weigh=weigh,
        clip_low=0.1,
        clip_high=0.15,
        clip_rule="decay",
        kl_coef=0.3,
        entropy_coef=0.2,
    )
    state = noisy(agent)
    batch = batch_of(agent, state, ADVANTAGE)
    loss, metrics = jax.jit(agent.loss)(state.params, batch, KEY)
    dist = jax.jit(agent.distribution)(state.params, *batch.answers[:2])
    new = np.asarray(dist.log_prob(batch.answers.tokens), np.float64)
    old, reference, entropy, mask = (
        np.asarray(x, np.float64)
        for x in (
            batch.answers.log_prob,
            batch.answers.reference_log_prob,
            dist.entropy(),
            batch.answers.mask,
        )
    )
    gains, extras = [], []
    for i, advantage in enumerate(ADVANTAGE.tolist()):
        rows = [t for t in range(3) if mask[i, t]]
        ratios = [math.exp(new[i, t] - old[i, t]) for t in rows]
        if ratio_of == "answer":
            ratios = [math.exp(np.mean([new[i, t] - old[i, t] for t in rows]))]
        gain = []
        for r in ratios:
            clipped = min(max(r, 0.9), 1.15)
            value = min(r * advantage, clipped * advantage)
            gain.append(value + share_kept(r, advantage) * (r - clipped) * advantage)
        gains.append(gain)
        drift = [reference[i, t] - new[i, t] for t in rows]
        bonus = [
            0.2 * entropy[i, t] - 0.3 * (math.exp(d) - 1 - d)
            for t, d in zip(rows, drift, strict=True)
        ]
        extras.append(bonus)

    def mean(rows):
        if weigh == "token":
            return sum(map(sum, rows)) / sum(map(len, rows))
        return np.mean([sum(row) / (len(row) if weigh == "answer" else 1) for row in rows])

    assert {len(row) for row in extras} > {3}  # some end early
    assert float(loss) == pytest.approx(-mean(gains) - mean(extras), rel=1e-4)
    assert float(metrics["policy_loss"]) == pytest.approx(-mean(gains), rel=1e-4)
    assert 0 < float(metrics["clip_fraction"]) < 1


@pytest.mark.parametrize("ratio_of", ["token", "answer"])
def test_noise_of_no_width_is_the_hard_rule(ratio_of):
    hard = made(network="tabular", ratio_of=ratio_of)
    state = noisy(hard)
    batch = batch_of(hard, state, ADVANTAGE)
    noise = made(network="tabular", ratio_of=ratio_of, clip_rule="noise", clip_noise=0.0)
    one, other = (
        jax.jit(jax.grad(agent.loss, has_aux=True))(state.params, batch, KEY)
        for agent in (hard, noise)
    )
    np.testing.assert_array_equal(one[0]["params"]["rows"], other[0]["params"]["rows"])
    assert float(other[1]["kept_fraction"]) == 0


@pytest.mark.parametrize("ratio_of", ["token", "answer"])
def test_noise_is_decay_on_average(ratio_of):
    options = {"network": "tabular", "ratio_of": ratio_of, "clip_noise": 0.3}
    noise, decay = (made(**options, clip_rule=rule) for rule in ("noise", "decay"))
    state = noisy(noise)
    batch = batch_of(noise, state, ADVANTAGE)

    def rows(agent, key):
        return jax.grad(agent.loss, has_aux=True)(state.params, batch, key)[0]["params"]["rows"]

    drawn = np.asarray(jax.jit(jax.vmap(partial(rows, noise)))(jax.random.split(KEY, 4000)))
    error = drawn.std(0) / math.sqrt(4000)
    assert (error > 1e-5).sum() >= 3
    off = np.abs(drawn.mean(0) - jax.jit(partial(rows, decay))(KEY))
    assert (off <= 4 * error + 3e-4).all(), off.max()  # what is rare may not have occurred
    assert drawn.std(0).max() > 0.02


def test_uniform_groups_are_left_out():
    reward = jnp.array([[0.0, 1.0], [1.0, 1.0]])
    verdict = Verdict(reward, reward, reward[..., None], reward.astype(jnp.int32))
    tokens = jnp.zeros((2, 2, 3), jnp.int32)
    ones = jnp.ones((2, 2, 3))
    answers = Answers(jnp.zeros((2, 2, 2), jnp.int32), tokens, ones, -ones, ones, -ones, verdict)
    state = SequenceState(KEY, (), (), (), ())
    for drop, mean in ((False, 1.0), (True, 0.5)):
        agent = made(num_prompts=2, total_steps=8, drop_uniform=drop)
        batch, _, metrics = agent.batch(state, answers, KEY)
        assert float(batch.answers.mask.mean()) == mean
        assert float(metrics["group_spread"]) == 0.5
        np.testing.assert_allclose(batch.advantage[:, 0], [-0.9998, 0.9998, 0, 0], atol=1e-6)


# What does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_minibatches": 3}, "num_minibatches=3 does not divide the 8 answers"),
        ({"network": "transformer", "width": 9}, "heads=2 does not divide width=9"),
        ({"env": Parity(bits=8), "network": "tabular"}, "network='tabular' would have"),
        ({"env": Match()}, "Match has no prompt: it learns from prompts and a verifier"),
        ({"layers": 3}, "layers=3 has no effect with network=gru"),
        ({"pretraining_accuracy": 0.7}, "has no effect with pretraining_steps=0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        made(**changes)


# Pre-training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_ends_at_its_accuracy_and_rl_goes_on_from_there():
    env = Sum(digits=4)
    options = {"env": env, "network": "tabular", "num_prompts": 32, "group_size": 8}
    options |= {"pretraining_learning_rate": 0.05, "pretraining_steps": 100, "total_steps": 51200}
    agent = made(**options, pretraining_accuracy=0.6, learning_rate=0.1)
    state = jax.jit(agent.init)(KEY)
    before = jax.jit(agent.evaluated)(state, KEY)
    assert 0.5 < float(before["sampled_accuracy"]) < 0.75
    step = jax.jit(lambda state: jax.lax.scan(agent.step, state, jnp.arange(200)))
    after = jax.jit(agent.evaluated)(step(state)[0], KEY)
    assert float(after["sampled_accuracy"]) > 0.95
    assert float(after["greedy_accuracy"]) > 0.99


@pytest.mark.slow
def test_supervised_training_stops_at_its_target_and_can_be_adopted():
    env = Sum(digits=4)
    options = {"env": env, "network": "tabular", "num_prompts": 32, "group_size": 8}
    agent = made(SFT, **options, learning_rate=0.05, target_accuracy=0.6, total_steps=51200)
    state, metrics = jax.jit(lambda s: jax.lax.scan(agent.step, s, jnp.arange(200)))(
        agent.init(KEY)
    )
    assert 0.55 < float(metrics["accuracy"][-20:].mean()) < 0.75
    other = made(**options, total_steps=51200)
    adopted = other.adopt(state)
    for name in ("params", "reference"):
        rows = getattr(adopted, name)["params"]["rows"]
        np.testing.assert_array_equal(rows, state.params["params"]["rows"])
    with pytest.raises(ValueError, match="of other sizes"):
        made(**(options | {"env": SUM}), total_steps=51200).adopt(state)
