"""Maestro: whom it may call, that the order of experts does not matter, and what it learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.sequences.maestro import Maestro
from envs_jax.sequences import Router, Sum
from jaxrl.parts.sequences import answer_mask
from tests.helpers import assert_same

KEY = jax.random.key(0)
ENV = Router(experts=4, domains=3, choices=3, turns=3)
TINY = {"num_prompts": 8, "group_size": 4, "width": 8, "total_steps": 320}


def made(env=ENV, env_params=None, **changes):
    return Maestro(env, env.default_params if env_params is None else env_params, **TINY | changes)


def noisy(agent, seed=0, scale=1.0):
    """A state whose parameters are none of them 0."""
    rng = np.random.default_rng(seed)
    state = jax.jit(agent.init)(KEY)
    params = jax.tree.map(
        lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32), state.params
    )
    return state._replace(params=params)


def permuted(tasks, params, order):
    """The same tasks and experts in another order of the registry."""
    fields = {name: getattr(params, name)[order] for name in ("accuracy", "features", "present")}
    return tasks.replace(said=tasks.said[..., order]), params.replace(**fields)


# The registry -----------------------------------------------------------------------------------


def test_the_order_of_experts_does_not_matter():
    """Logits go with the experts, also after some have been asked."""
    params = ENV.default_params.replace(present=jnp.array([True, True, False, True]))
    agent, order = made(env_params=params), jnp.array([2, 0, 3, 1])
    state = noisy(agent)
    tasks = agent.fresh_prompts(KEY)
    calls = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 3)), jnp.int32)
    place = jnp.argsort(order)  # where each expert stands now
    others, other_params = permuted(tasks, params, order)
    other = made(env_params=other_params)

    @jax.jit
    def both(weights):
        one = agent.distribution(weights, tasks, calls).logits
        return one, other.distribution(weights, others, place[calls]).logits

    one, two = map(np.asarray, both(state.params))
    assert one.shape == (8, 3, 5)
    np.testing.assert_allclose(two[..., :4], one[..., :4][..., order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two[..., 4], one[..., 4], rtol=1e-5, atol=1e-5)
    there = one[..., [0, 1, 3]]
    assert there.std(axis=-1).min() > 1e-3  # experts differ,
    assert there.std(axis=1).min() > 1e-4  # and so do turns


def test_an_expert_who_is_away_is_never_called():
    params = ENV.default_params.replace(present=jnp.array([False, True, False, True]))
    agent = made(env_params=params, temperature=0.5, num_prompts=200, total_steps=800)
    state = noisy(agent)

    @jax.jit
    def written(state):
        return agent.answers(state, agent.fresh_prompts(KEY), KEY), agent.step(state, jnp.int32(0))

    answers, (after, metrics) = written(state)
    assert not {0, 2} & set(np.unique(answers.tokens).tolist())
    assert len(np.unique(answers.tokens)) > 1
    assert np.isfinite(answers.log_prob).all()
    assert np.isfinite(answers.entropy).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
    assert np.isfinite(metrics["entropy"])
    obs = agent.observed(agent.fresh_prompts(KEY), answers.tokens[:, 0], jnp.int32(1))
    chances = np.exp([agent.log_prob(state, obs[0], jnp.int32(a)) for a in range(5)])
    assert chances[0] == chances[2] == 0
    assert chances.sum() == pytest.approx(1, abs=1e-5)


def test_nobody_is_there():
    params = ENV.default_params.replace(present=jnp.zeros(4, bool))
    agent = made(env_params=params)
    tokens = agent.sample(noisy(agent).params, agent.fresh_prompts(KEY), KEY)[0]
    assert (tokens == ENV.end_token).all()


def test_another_registry_has_the_same_parameters():
    """One expert more changes nothing for the others but the normalisation."""
    larger = Router(experts=5, domains=3, choices=3, turns=3)
    params = ENV.default_params
    more = params.replace(
        accuracy=jnp.vstack([params.accuracy, jnp.full(3, 0.9)]),
        features=jnp.vstack([params.features, jnp.array([0.9, 0.2, 0.5])]),
        present=jnp.append(params.present, True),
    )
    agent, other = made(), made(larger, more)
    state = noisy(agent)
    tasks = agent.fresh_prompts(KEY)
    said = jnp.concatenate([tasks.said, jnp.zeros((8, 3, 1), jnp.int32)], axis=-1)
    calls = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 3)), jnp.int32)
    one = agent.distribution(state.params, tasks, calls).logits
    two = other.distribution(state.params, tasks.replace(said=said), calls).logits
    assert two.shape == (8, 3, 6)
    np.testing.assert_allclose(two[..., [0, 1, 2, 3, 5]], one, rtol=1e-5, atol=1e-5)
    adopted = other.adopt(state)
    assert_same(adopted.params, state.params)


# Calls ------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read():
    """Log-probabilities of sampled calls are those of the same calls, given as a whole."""
    agent = made(temperature=0.8)
    state = noisy(agent, scale=0.3)

    @jax.jit
    def both(state):
        answers = agent.answers(state, agent.fresh_prompts(KEY), KEY)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answers)
        dist = agent.distribution(state.params, flat.prompt, flat.tokens)
        return flat, dist.log_prob(flat.tokens), dist.entropy()

    flat, log_prob, entropy = jax.tree.map(np.asarray, both(state))
    mask = np.asarray(answer_mask(jnp.asarray(flat.tokens), ENV.end_token))
    assert 0.4 < mask.mean() < 1
    np.testing.assert_allclose(flat.log_prob * mask, log_prob * mask, atol=1e-5)
    np.testing.assert_allclose(flat.entropy * mask, entropy * mask, atol=1e-5)


def test_acting_is_writing():
    """Turn by turn in the environment, the greedy policy makes the greedy calls."""
    agent, params = made(), ENV.default_params
    state = noisy(agent, seed=1, scale=1.5)
    policy = agent.policy(state)

    def both(key):
        obs, env_state = ENV.reset_env(key, params)
        tasks = jax.tree.map(lambda x: x[None], env_state.prompt)
        written = agent.sample(state.params, tasks, None)[0][0]
        taken = []
        for _ in range(3):
            taken.append(policy(obs, key))
            obs, env_state, *_ = ENV.step_env(key, env_state, taken[-1], params)
        return written, jnp.stack(taken)

    written, taken = map(np.asarray, jax.jit(jax.vmap(both))(jax.random.split(KEY, 16)))
    for calls, actions in zip(written.tolist(), taken.tolist(), strict=True):
        stop = calls.index(4) + 1 if 4 in calls else 3
        assert calls[:stop] == actions[:stop]
    assert len(np.unique(written, axis=0)) > 1


def test_the_loss_is_the_clipped_surrogate():
    agent = made(clip_low=0.1, clip_high=0.15)
    state, later = noisy(agent, scale=0.3), noisy(agent, seed=2, scale=0.3)

    @jax.jit
    def learnt(state, params):
        answers = agent.answers(state, agent.fresh_prompts(KEY), KEY)
        batch, _, metrics = agent.batch(state, answers, KEY)
        read = agent.distribution(params, batch.answers.prompt, batch.answers.tokens)
        log_prob = read.log_prob(batch.answers.tokens)
        return answers, metrics, log_prob, agent.loss(params, batch, KEY)

    answers, metrics, new, (loss, of_loss) = jax.tree.map(
        lambda x: np.asarray(x, np.float64), learnt(state, later.params)
    )
    gains, calls = [], 0
    for n, g in itertools.product(range(8), range(4)):
        reward = answers.verdict.reward[n]
        advantage = (reward[g] - reward.mean()) / (reward.std() + 1e-4)
        for t in range(3):
            ratio = np.exp(new[4 * n + g, t] - answers.log_prob[n, g, t])
            gains.append(min(ratio * advantage, np.clip(ratio, 0.9, 1.15) * advantage))
            if answers.tokens[n, g, t] == ENV.end_token:
                break
            calls += 1
    assert float(loss) == pytest.approx(-np.mean(gains), rel=1e-4, abs=1e-6)
    assert float(metrics["calls"]) == pytest.approx(calls / 32, rel=1e-5)
    assert 0 < float(of_loss["clip_fraction"]) < 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"env": Sum()}, "maestro: sequences/sum has no embedding among the parts of its obs"),
        ({"network": "transformer"}, "network='transformer' has no effect on maestro"),
        ({"clip_low": 0.0}, r"clip_low=0.0 is outside \(0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        made(**changes)


# Learning ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Agents, in the order of their costs, and their runs."""
    runs = []
    for cost in (0.0, 0.1, 1.0):
        params = ENV.default_params.replace(cost=jnp.float32(cost))
        sizes = {"num_prompts": 32, "group_size": 8, "width": 16, "learning_rate": 1e-2}
        agent = made(env_params=params, **sizes | {"total_steps": 256 * 150})
        runs.append(jaxrl.train(agent))
    return runs


@pytest.mark.slow
def test_the_dearer_the_fewer_calls(trained):
    calls = [float(run.history.metrics["calls"][-10:].mean()) for run in trained]
    assert calls[0] > calls[1] + 0.2
    assert calls[1] > calls[2] + 0.2


@pytest.mark.slow
def test_the_best_expert_is_called(trained):
    run = trained[1]
    agent, params = run.agent, ENV.default_params
    tasks = agent.fresh_prompts(jax.random.key(5), 500)
    first = np.asarray(agent.sample(run.state.params, tasks, None)[0][:, 0])
    domain = np.asarray(tasks.embedding.argmax(-1))
    skill = np.append(np.asarray(params.accuracy), np.zeros((1, 3)), axis=0)[first, domain]
    assert (skill > 0.8).mean() > 0.95


@pytest.mark.slow
def test_a_better_expert_is_called_without_training(trained):
    """It joins after training: better than all others in domain 0, in the others as good as one."""
    run, params = trained[1], ENV.default_params
    larger = Router(experts=5, domains=3, choices=3, turns=3)
    skill = jnp.array([0.99, 0.9, 0.9])
    more = params.replace(
        accuracy=jnp.vstack([params.accuracy, skill]),
        features=jnp.vstack([params.features, skill]),
        present=jnp.append(params.present, True),
        cost=jnp.float32(0.1),
    )
    rewards = []
    for there in (False, True):
        now = more.replace(present=more.present.at[-1].set(there))
        agent = run.agent.replace(env=larger, env_params=now)
        tasks = agent.fresh_prompts(jax.random.key(6), 4000)
        tokens = agent.sample(run.state.params, tasks, None)[0]
        rewards.append(np.asarray(agent.verify(tasks, tokens).reward))
    gain = rewards[1] - rewards[0]
    assert gain.mean() > 2 * gain.std() / np.sqrt(4000)
    first = np.asarray(tokens[:, 0])[np.asarray(tasks.embedding.argmax(-1)) == 0]
    assert (first == 4).mean() > 0.5
