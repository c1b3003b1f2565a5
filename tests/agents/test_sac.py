"""SAC's choices: targets and subsets by enumeration, dropout, delay, step sizes, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agents.off_policy.sac import SAC, subset
from jaxrl.parts.optimize import MISSING
from jaxrl.parts.replay import Batch
from tests.helpers import assert_same
from tests.probes import Match

KEY = jax.random.key(0)
ENV = Match(continuous=True)
SIZE = 16


def make(**changes):
    options = {"hidden_sizes": (3,), "learning_rate": 1e-2, "total_steps": 8000}
    return SAC(ENV, ENV.default_params, **options | changes)


def batch_of(n_step=1):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Batch(
        normal(SIZE, 1),
        jnp.tanh(normal(SIZE, 1)),
        normal(SIZE) if n_step == 1 else normal(SIZE, n_step),
        jnp.asarray(rng.random(SIZE) < 0.3),
        normal(SIZE, 1),
        jnp.asarray(rng.random(SIZE) < 0.8),
        None if n_step == 1 else jnp.asarray(rng.integers(1, n_step + 1, SIZE)),
    )


def flat(critic, value):
    """A critic that gives `value` whatever it sees."""
    zeros = jax.tree.map(jnp.zeros_like, critic)
    head = zeros["params"]["Dense_1"] | {"bias": jnp.full(1, value, jnp.float32)}
    return {"params": zeros["params"] | {"Dense_1": head}}


def forward(params, x):
    """A network of one hidden layer in double precision."""
    layers = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
    hidden = np.maximum(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_critics_loss_is_that_of_a_plain_loop(n_step):
    agent = make(n_step=n_step, gamma=0.9, temperature=0.3, reward_scale=2.0)
    learner, batch = agent.init_learner(KEY, jnp.ones(1)), batch_of(n_step)
    metrics = jax.jit(agent.update)(learner, batch, KEY, 0)[1]
    dist = agent.distribution(learner.actor, batch.next_obs)
    action, log_prob = dist.sample_and_log_prob(jax.random.split(KEY)[0])
    rewards = np.asarray(batch.reward, np.float64).reshape(SIZE, -1)
    losses = []
    for i in np.flatnonzero(batch.valid):
        k = 1 if n_step == 1 else int(batch.num_steps[i])
        target = sum(0.9**j * 2 * rewards[i, j] for j in range(k))
        if not batch.terminated[i]:
            inputs = np.append(batch.next_obs[i], action[i])
            next_q = min(forward(critic, inputs)[0] for critic in learner.target_critics)
            target += 0.9**k * (next_q - 0.3 * float(log_prob[i]))
        inputs = np.append(batch.obs[i], batch.action[i])
        losses.append(sum(0.5 * (forward(c, inputs)[0] - target) ** 2 for c in learner.critics))
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-5)


# REDQ -------------------------------------------------------------------------------------------


def test_every_subset_is_as_likely():
    critics = tuple(jnp.float32(x) for x in (1, 2, 4, 8))
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(subset(key, critics, 2))))
    drawn = np.sort(np.asarray(draw(jax.random.split(KEY, 3000))), axis=1)
    subsets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(s) for s in subsets} == set(itertools.combinations((1, 2, 4, 8), 2))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert subset(KEY, critics, 4) is critics


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_target_is_expected_over_all_subsets(size):
    """Flat critics of 0 in the loss and of 1, 2, 4, 8 as targets, whose least its loss tells."""
    values = (1.0, 2.0, 4.0, 8.0)
    options = {"temperature": 1e-6, "gamma": 1.0, "actor_value": "mean"}
    agent = make(num_critics=4, target_subset=size, **options)
    learner = agent.init_learner(KEY, jnp.ones(1))
    learner = learner._replace(
        critics=tuple(flat(c, 0.0) for c in learner.critics),
        target_critics=tuple(map(flat, learner.target_critics, values)),
    )
    batch = batch_of()._replace(
        reward=jnp.zeros(SIZE), terminated=jnp.zeros(SIZE, bool), valid=jnp.ones(SIZE, bool)
    )

    @jax.jit
    @jax.vmap
    def target(key):
        return jnp.sqrt(agent.update(learner, batch, key, 0)[1]["critic_loss"] / 2)  # 4 x 0.5 y^2

    found = np.asarray(target(jax.random.split(KEY, 2000)))
    least = [min(chosen) for chosen in itertools.combinations(values, size)]
    assert {int(x) for x in np.round(found)} == {int(x) for x in least}
    assert abs(found.mean() - np.mean(least)) < 4 * np.std(least) / np.sqrt(2000)


def test_the_actor_climbs_the_least_or_the_mean():
    losses = {}
    for choice in ("min", "mean"):
        agent = make(num_critics=3, actor_value=choice)
        learner = agent.init_learner(KEY, jnp.ones(1))
        values = tuple(map(flat, learner.critics, (1.0, 3.0, 8.0)))
        args = learner._replace(critics=values), batch_of(), KEY, KEY
        losses[choice] = float(jax.jit(agent.actor_step)(*args)[1]["actor_loss"])
    assert losses["min"] - losses["mean"] == pytest.approx(4 - 1, abs=1e-5)


# DroQ -------------------------------------------------------------------------------------------


def test_dropout_differs_between_critics_and_calls_and_is_right_on_average():
    """One critic twice; without LayerNorm Q is linear in what dropout keeps."""
    agent = make(dropout=0.4, hidden_sizes=(32,))
    critic = agent.init_learner(KEY, jnp.ones(1)).critics[0]
    batch = batch_of()

    @jax.jit
    @jax.vmap
    def values(key):
        return agent.q_values((critic, critic), batch.obs, batch.action, key)

    q = np.asarray(values(jax.random.split(KEY, 3000)))  # (keys, 2, B)
    plain = np.asarray(agent.q_values((critic, critic), batch.obs, batch.action))
    np.testing.assert_array_equal(plain[0], plain[1])
    assert (q[:, 0] != q[:, 1]).any(axis=1).all()
    assert (q[1:] != q[:-1]).any(axis=-1).all()
    error = np.abs(q.mean(axis=0) - plain) / (q.std(axis=0) / np.sqrt(3000))
    assert error.max() < 5


def test_target_loss_and_actor_drop_by_keys_of_their_own(monkeypatch):
    agent, keys, plain = make(dropout=0.1), [], SAC.q_values

    def q_values(self, critics, obs, action, dropout_key=None):
        keys.append(tuple(np.asarray(jax.random.key_data(dropout_key))))
        return plain(self, critics, obs, action, dropout_key)

    monkeypatch.setattr(SAC, "q_values", q_values)
    agent.update(agent.init_learner(KEY, jnp.ones(1)), batch_of(), KEY, jnp.int32(0))
    drawn = [tuple(np.asarray(jax.random.key_data(k))) for k in jax.random.split(KEY)]
    assert len(keys) == 3
    assert len({*keys, *drawn}) == 5


# Delay, step sizes, bounds ----------------------------------------------------------------------


def test_the_actor_waits_for_its_turn():
    agent = make(policy_delay=3)
    learner, update = agent.init_learner(KEY, jnp.ones(1)), jax.jit(agent.update)
    for n in range(6):
        after, metrics = update(learner, batch_of(), jax.random.fold_in(KEY, n), n)
        slow = [
            (x.actor, x.actor_opt, x.log_temperature, x.temperature_opt) for x in (learner, after)
        ]
        with pytest.raises(AssertionError):
            assert_same(after.critics, learner.critics)
        with pytest.raises(AssertionError):
            assert_same(after.target_critics, learner.target_critics)
        if n in (2, 5):
            with pytest.raises(AssertionError):
                assert_same(*slow)
            assert metrics["actor_loss"] > MISSING
        else:
            assert_same(*slow)
            assert metrics["actor_loss"] == metrics["entropy"] == np.float32(MISSING)
        learner = after


def test_the_actor_has_a_step_size_of_its_own():
    """Adam's first step is its step size, where a gradient is not 0."""
    agent = make()
    learner = agent.init_learner(KEY, jnp.ones(1))
    update = jax.jit(lambda agent: agent.update(learner, batch_of(), KEY, 0)[0])
    for own, expected in [(0.0, 1e-2), (3e-3, 3e-3)]:
        after = update(agent.replace(actor_learning_rate=own))
        assert furthest(after.critics, learner.critics) == pytest.approx(1e-2, rel=1e-3)
        assert furthest(after.actor, learner.actor) == pytest.approx(expected, rel=1e-3)


def furthest(after, before):
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, before)
    return max(jax.tree.leaves(moved))


def test_the_log_deviation_is_within_its_bounds():
    agent = make(log_std_min=-2.5, log_std_max=0.5, hidden_sizes=())
    actor = agent.init_learner(KEY, jnp.ones(1)).actor
    actor = jax.tree.map(lambda x: x.at[..., 1].set(1.0), actor)  # log-deviation: obs + 1
    found = agent.distribution(actor, jnp.array([[-9.0], [-2.0], [9.0]])).log_std
    np.testing.assert_array_equal(found[:, 0], [-2.5, -1.0, 0.5])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_critics": 1}, "target_subset=2 is more than num_critics=1"),
        ({"target_subset": 3}, "target_subset=3 is more than num_critics=2"),
        (
            {"num_critics": 1, "target_subset": 1, "actor_value": "mean"},
            "actor_value='mean' has no effect with num_critics=1",
        ),
        ({"log_std_min": 2.0}, "log_std_min=2.0 must be below log_std_max=2.0"),
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
    ],
)
def test_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        make(**changes)
