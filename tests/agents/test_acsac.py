"""ACSAC's targets against plain loops, its memory, and what it learns of known answers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.acsac import ACSAC, QC
from jaxrl.parts.replay import Batch
from tests.helpers import assert_same
from tests.probes import GAMMA, MATCH, SignedLimit, any_of, known_answers
from tests.probes import settings as settings_of
from tests.records import data_of

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
ENV = SignedLimit(continuous=True, limit=4)
SMALL = {
    "num_samples": 3,
    "flow_steps": 2,
    "hidden_sizes": (4,),
    "width": 4,
    "heads": 2,
    "layers": 1,
    "batch_size": 8,
}


def make(**changes):
    return ACSAC(ENV, ENV.default_params, **SMALL | changes)


def batch_of(length):
    """Chunks of which some end at their first step, or are cut there."""
    rng = np.random.default_rng(0)
    num_steps = np.array([length, 1, 1, length])
    terminated = np.zeros((4, length), bool)
    terminated[1] = True
    terminated[3, -1] = True
    valid = (np.arange(length) < num_steps[:, None]) | terminated
    numbers = [rng.normal(size=(4, *shape)).astype(np.float32) for shape in ((1,), (length, 1))]
    obs, next_obs = map(jnp.asarray, numbers)
    return Batch(
        obs=obs,
        action=jnp.asarray(rng.uniform(-1, 1, (4, length, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=(4, length)), jnp.float32),
        terminated=jnp.asarray(terminated),
        next_obs=next_obs,
        valid=jnp.asarray(valid),
        num_steps=jnp.asarray(num_steps, jnp.int32),
    )


def drawn(agent, actor, obs, key):
    """The agent's N chunks (B, N, H) of one action dimension, by Euler steps of its velocity."""
    size = agent.window
    velocity = jax.jit(agent.make_actor().apply)
    x = np.asarray(jax.random.normal(key, (len(obs), agent.num_samples, size)))
    obs = np.repeat(np.asarray(obs)[:, None], agent.num_samples, axis=1)
    for i in range(agent.flow_steps):
        time = np.full((*x.shape[:-1], 1), i / agent.flow_steps, np.float32)
        x = x + np.asarray(velocity(actor, obs, np.concatenate([x, time], axis=-1))) / 2
    return np.clip(x, -1, 1)


def moved(learner):
    """A learner none of whose networks or target networks are alike."""

    rng = np.random.default_rng(0)

    def move(x):
        return jnp.asarray(x + 0.5 * rng.normal(size=x.shape), x.dtype)

    names = ("actor", "critics", "target_critics")
    return learner._replace(**{x: jax.tree.map(move, getattr(learner, x)) for x in names})


def learner_of(agent):
    return moved(jax.jit(agent.init_learner)(KEY, jnp.ones(1)))


@pytest.mark.parametrize(
    ("lengths", "length_by"),
    [
        ((1,), "value"),
        ((1, 3), "value"),
        pytest.param((1, 3), "advantage", marks=pytest.mark.slow),
        pytest.param((2,), "value", marks=pytest.mark.slow),
    ],
)
def test_every_prefix_learns_its_own_target(lengths, length_by):
    """With one length of 1 that is Q-learning whose maximum is over N cloned actions."""
    agent = make(chunk_lengths=lengths, length_by=length_by, gamma=0.9)
    learner, batch = learner_of(agent), batch_of(lengths[-1])
    metrics = jax.jit(agent.update)(learner, batch, KEY, jnp.int32(0))[1]

    critic = jax.jit(agent.make_critic().apply)
    reward, count = np.asarray(batch.reward), np.asarray(batch.num_steps)
    next_obs = np.asarray(batch.next_obs)[:, np.array(lengths) - 1].reshape(-1, 1)
    chunks = drawn(agent, learner.actor, next_obs, jax.random.split(KEY)[0])
    next_q = np.mean(
        [critic(c, next_obs, chunks[..., None]) for c in learner.target_critics], axis=0
    ).reshape(4, len(lengths), agent.num_samples, lengths[-1])
    q = [np.asarray(critic(c, batch.obs, batch.action[:, None]))[:, 0] for c in learner.critics]
    losses, chosen = [], []
    for b, (place, h) in itertools.product(range(4), enumerate(lengths)):
        options = {(i, k): next_q[b, place, i, k - 1] for i in range(3) for k in lengths}
        mean = {k: np.mean([options[i, k] for i in range(3)]) for k in lengths}
        by = {
            (i, k): v - (mean[k] if length_by == "advantage" else 0)
            for (i, k), v in options.items()
        }
        best = max(by, key=by.get)
        chosen.append(best[1])
        if not batch.valid[b, h - 1]:
            continue
        target = sum(0.9**j * reward[b, j] for j in range(min(h, count[b])))
        if not batch.terminated[b, h - 1]:
            target += 0.9**h * options[best]
        losses.append(sum(0.5 * (float(x[b, h - 1]) - target) ** 2 for x in q))
    assert float(metrics["critic_loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(metrics["chunk_length"]) == pytest.approx(np.mean(chosen))


def test_no_prefix_beyond_a_cut_teaches_anything():
    """Neither policy nor critic: whatever the window holds there."""
    agent = make(chunk_lengths=(1, 3))
    learner, batch = learner_of(agent), batch_of(3)
    update = jax.jit(agent.update)
    other = batch._replace(
        action=batch.action.at[2, 1:].set(0.3),
        reward=batch.reward.at[2, 1:].set(9.0),
        next_obs=batch.next_obs.at[2, 1:].set(0.3),
    )
    one, two = (update(learner, x, KEY, jnp.int32(0))[0] for x in (batch, other))
    assert_same(one.critics, two.critics)
    seen = batch._replace(reward=batch.reward.at[2, 0].set(9.0))
    with pytest.raises(AssertionError):
        assert_same(one.critics, update(learner, seen, KEY, jnp.int32(0))[0].critics)


# Acting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [QC["chunk_lengths"], (1, 2, 3)])
def test_a_prefix_is_executed_without_looking_and_then_it_looks_again(lengths):
    agent = make(chunk_lengths=lengths, buffer_size=64)
    state = jax.jit(agent.init)(KEY)
    learner = moved(state.learner)
    policy = agent.policy(state._replace(learner=learner))
    step, best = jax.jit(policy.step), jax.jit(agent.best)
    memory, planned, lengths_seen = policy.initial(), [], set()
    for i in range(12):
        obs, key = jnp.full((1,), np.sin(3.0 * i)), jax.random.fold_in(KEY, i)
        if not planned:
            chunk, length, _ = best(learner.actor, learner.critics, obs[None], key)
            planned = list(np.asarray(chunk)[0, : int(length[0])])
            lengths_seen.add(int(length[0]))
        memory, action = step(memory, obs, key)
        np.testing.assert_allclose(action, 2 * planned.pop(0), rtol=1e-4, atol=1e-5)  # in +-2
        assert int(memory.left) == len(planned)
    assert lengths_seen <= set(lengths)


def test_collecting_carries_plans_and_drops_them_where_an_episode_ends():
    """Episodes of 4 steps, chunks of 3: planned at their first and their fourth step."""
    agent = make(
        chunk_lengths=(3,),
        num_envs=2,
        num_steps=1,
        learning_starts=1,
        buffer_size=64,
        num_updates=1,
    ).replace(total_steps=64)
    step, state = jax.jit(agent.step), jax.jit(agent.init)(KEY)
    left = []
    for t in range(9):
        state, _ = step(state, jnp.int32(t))
        left.append(np.asarray(state.source.actors.memory.left).tolist())
    # The first step is random; the plan of the second one ends with the episode.
    assert left == [[x, x] for x in (0, 2, 1, 0, 2, 1, 0, 0, 2)]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"chunk_lengths": ()}, r"chunk_lengths=\(\) must ascend, from at least one"),
        ({"chunk_lengths": (2, 1)}, r"chunk_lengths=\(2, 1\) must ascend"),
        ({"chunk_lengths": (1, 1)}, r"chunk_lengths=\(1, 1\) must ascend"),
        ({"heads": 3}, "heads=3 does not divide width=4"),
        ({"num_samples": 1, "length_by": "advantage"}, "needs num_samples of at least 2"),
        ({"chunk_lengths": (9,), "buffer_size": 64}, "does not hold chunks of 9 steps"),
        (QC | {"length_by": "advantage"}, "has no effect with one chunk length"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=f"^acsac: .*{line}"):
        make(**changes)


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_learnt_offline_goes_on_online():
    actions, rows = np.linspace(-1, 1, 50)[:, None], np.full((50, 1), 3.0)
    data = data_of(ENV, rows, actions, np.ones(50))
    offline = make(chunk_lengths=(1, 2), data=data, num_updates=2, total_steps=4)
    run = jaxrl.train(offline)
    online = make(
        chunk_lengths=(1, 2),
        data=data,
        data_share=0.5,
        num_updates=2,
        num_envs=2,
        learning_starts=8,
        buffer_size=64,
        total_steps=16,
    )
    first = jaxrl.train(online, start=run, until=1)  # which does not learn yet
    assert_same(first.state.learner, run.state.learner)
    whole = jaxrl.train(online, start=first)
    with pytest.raises(AssertionError):
        assert_same(whole.state.learner.critics, run.state.learner.critics)


@pytest.mark.slow
def test_reaches_the_known_answers():
    """Values of the probes under the best policy, and the best action among those cloned."""
    rows = known_answers(continuous=True)
    env = any_of(rows)
    chosen = (2, MATCH, len(rows) - 1)  # two steps, the best action, and time limits
    agent = ACSAC(
        env,
        env.default_params,
        gamma=GAMMA,
        chunk_lengths=(1, 2, 3),
        num_samples=8,
        flow_steps=4,
        hidden_sizes=(32,),
        width=16,
        heads=2,
        layers=1,
        learning_rate=3e-3,
        tau=0.05,
        num_updates=2,
        batch_size=32,
        buffer_size=4096,
        learning_starts=256,
        total_steps=8 * 500,
    )
    population = jaxrl.sweep(agent, [settings_of(rows)[i] for i in chosen])
    for i, place in enumerate(chosen):
        run, row = population[i], rows[place]
        if place == MATCH:
            continue
        learner, obs = run.state.learner, jnp.array(row.observations)[:, None]
        found = run.agent.best(learner.actor, learner.critics, obs, KEY)[2]
        expected = np.max(row.q, axis=1)
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.1, err_msg=str(place))
    returns = population.evaluate(episodes=64).returns.mean(axis=1)
    assert returns[1] > -0.5  # about -1.1 at random
