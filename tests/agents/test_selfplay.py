"""Self-play: the gate, the pool, both roles' rewards, the loss, and a sweep of gates."""

import math
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.sequences import selfplay
from agents.sequences.selfplay import Lesson, Pool, Proposals, SelfPlay
from envs_jax.sequences import Dsl, Sum
from jaxrl.parts.sequences import repeated

KEY = jax.random.key(0)
ENV = Dsl()
SIZES = {
    "num_prompts": 4,
    "group_size": 3,
    "width": 4,
    "pretraining_steps": 0,
    "pool_size": 6,
    "seed_tasks": 3,
    "validation_tasks": 5,
    "total_steps": 48,
}


def made(cls=SelfPlay, env=ENV, **changes):
    return cls(env, env.default_params, **SIZES | changes)


class Exact(SelfPlay):
    """One that answers every task rightly, and 0 where a task has no value; proposes at random."""

    def sample(self, params, prompts, key, group_size=1, length=None):
        drawn = super().sample(params, prompts, key, group_size, length)
        if length is not None:
            return drawn
        tokens = self.execute(repeated(prompts, group_size))[0][:, None]
        return tokens, *drawn[1:]


@pytest.fixture(scope="module")
def exact():
    """The pool and metrics after one iteration with the gate closed and open, of 200 proposals."""
    sizes = {"num_prompts": 200, "pool_size": 600, "total_steps": 600}
    agent = made(Exact, **sizes)
    step = jax.jit(lambda leak: agent_step(agent, leak))
    return [jax.tree.map(np.asarray, step(leak)) for leak in (0.0, 1.0)]


def agent_step(agent, leak):
    agent = agent.replace(gate_leak=leak)
    state, metrics = agent.step(agent.init(KEY), jnp.int32(0))
    return state.memory.pool, metrics


# The gate and the pool --------------------------------------------------------------------------


def test_the_gate_lets_through_a_share_of_what_is_no_task():
    valid = jnp.arange(40_000) % 4 == 0
    for leak in (0.0, 0.05, 0.4, 1.0):
        admit = np.asarray(selfplay.admitted(KEY, valid, leak))
        assert admit[::4].all()
        share = admit[np.asarray(~valid)].mean()
        assert abs(share - leak) <= 3 * math.sqrt(leak * (1 - leak) / 30_000)


def test_the_pool_holds_the_newest_tasks():
    rng = np.random.default_rng(0)
    empty = Pool(jnp.zeros((6, 2), int), jnp.zeros(6, int), jnp.zeros(6, bool), jnp.int32(0))
    pool, expected, number = empty, deque(maxlen=6), 0
    for _ in range(12):
        tasks, values = rng.integers(0, 99, (4, 2)), rng.integers(0, 99, 4)
        valid, admit = rng.random((2, 4)) < 0.6
        pool = selfplay.added(pool, *map(jnp.asarray, (tasks, values, valid, admit)))
        rows = list(zip(tasks.tolist(), values, valid, strict=True))
        expected.extend(row for row, a in zip(rows, admit, strict=True) if a)
        number += admit.sum()
        assert int(pool.admitted) == number
        there = min(number, 6)
        held = zip(*(x.tolist() for x in pool[:3]), strict=True)
        got = [(t, int(v), bool(ok)) for t, v, ok in held][:there]
        assert sorted(got) == sorted((t, int(v), bool(ok)) for t, v, ok in expected)
        drawn = np.asarray(selfplay.drawn_rows(KEY, pool, 200))
        assert set(drawn.tolist()) == set(range(there))


def test_the_pool_starts_with_tasks_of_the_environment():
    pool, validation = jax.jit(made().init_memory)(KEY)
    assert int(pool.admitted) == 3
    assert pool.valid.tolist() == [True] * 3 + [False] * 3
    values, valid = jax.vmap(ENV.run)(pool.tasks[:3, 2:], pool.tasks[:3, 0], pool.tasks[:3, 1])
    assert valid.all()
    np.testing.assert_array_equal(values, pool.values[:3])
    other = jax.jit(made().init_memory)(jax.random.key(1))
    assert (pool.tasks[:3] != other.pool.tasks[:3]).any()
    np.testing.assert_array_equal(validation, other.validation)


# Rewards ----------------------------------------------------------------------------------------


def test_an_exact_solver_has_no_gap(exact):
    """Unless tasks that are none, with random values, pass the gate."""
    (_, closed), (_, leaky) = exact
    assert closed["reward_gap"] == 0
    assert closed["accuracy"] == closed["agreement"] == closed["validation_accuracy"] == 1
    assert closed["valid_tasks"] == 1
    assert closed["valid_proposals"] == leaky["valid_proposals"] < 0.2  # written at random
    assert leaky["valid_tasks"] < 0.4
    assert leaky["agreement"] == 1
    wrong = 1 - leaky["valid_tasks"]  # a random one of 17 values is answered
    error = 4 * math.sqrt(1 / 17 / 200)
    assert abs(leaky["reward_gap"] - wrong * 16 / 17) < error
    assert leaky["validation_accuracy"] == 1


def test_a_proposal_earns_only_if_it_is_admitted(exact):
    (_, closed), (_, leaky) = exact
    assert closed["proposer_reward"] == 0  # an exact solver fails nothing that has a value
    assert leaky["proposer_reward"] > 0.6


def test_admitted_tasks_are_in_the_pool(exact):
    (closed, metrics), (leaky, _) = exact
    assert leaky.admitted == 203
    assert closed.admitted == 3 + round(200 * float(metrics["valid_proposals"]))
    assert not closed.valid[int(closed.admitted) :].any()
    values = leaky.values[:203][~leaky.valid[:203]]
    assert len(set(values.tolist())) > 12  # random ones


def test_what_proposals_are_judged_by(monkeypatch):
    tokens = jnp.concatenate([jnp.zeros((2, 9), int), jnp.array([[5], [7]])], axis=1)
    proposals = Proposals(tokens, jnp.zeros((2, 10)), jnp.array([1, 2]), jnp.array([True, True]))
    answers = jnp.array([[1], [1], [5], [7], [7], [7]])
    monkeypatch.setattr(SelfPlay, "sample", lambda *args: (answers, None, None))
    for reward, wrong in (("grounded", [1 / 3, 1.0]), ("intrinsic", [2 / 3, 0.0])):
        failed = made(proposer_reward=reward).failed((), proposals, KEY)
        np.testing.assert_allclose(failed, wrong, rtol=1e-6)


@pytest.fixture(scope="module")
def start():
    return jax.jit(made().init)(KEY)


@pytest.mark.parametrize("reward", ["grounded", "intrinsic"])
def test_what_the_solver_learns_from(reward, monkeypatch, start):
    """The advantages that the lesson holds, of answers and pool as they are."""
    seen = {}

    def learn(self, params, opt_state, lesson, key):
        seen["lesson"] = lesson
        return params, opt_state, {}

    monkeypatch.setattr(SelfPlay, "learn", learn)
    agent = made(solver_reward=reward)

    def step(state):
        state, metrics = agent.step(state, jnp.int32(0))
        return state.memory.pool, metrics, seen["lesson"]

    pool, metrics, lesson = jax.tree.map(np.asarray, jax.jit(step)(start))
    values = {tuple(t): int(v) for t, v in zip(pool.tasks.tolist(), pool.values, strict=True)}
    rights, agreements = [], []
    for prompt, answers, advantage in zip(*lesson[:2], lesson[3], strict=True):
        right = [float(x == values[tuple(prompt.tolist())]) for x in answers]
        agree = [answers.tolist().count(x) / 3 for x in answers]
        r = np.array(right if reward == "grounded" else agree)
        np.testing.assert_allclose(advantage, (r - r.mean()) / (r.std() + 1e-4), atol=1e-4)
        rights.append(right)
        agreements.append(agree)
    assert float(metrics["reward_gap"]) == pytest.approx(
        np.mean(agreements) - np.mean(rights), abs=1e-6
    )
    wanted = rights if reward == "grounded" else agreements
    assert float(metrics["episode_return"]) == pytest.approx(np.mean(wanted), abs=1e-6)


# The loss ---------------------------------------------------------------------------------------


def random_lesson():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 17, (4, 10))
    proposals = Proposals(
        tokens, -3 + rng.normal(size=(4, 10)) * 0.3, tokens[:, 0], tokens[:, 0] > 3
    )
    answers = rng.integers(0, 17, (4, 3))
    lesson = Lesson(
        rng.integers(0, 27, (4, 9)),
        answers,
        -3 + rng.normal(size=(4, 3)) * 0.3,
        rng.normal(size=(4, 3)),
        proposals,
        rng.normal(size=4),
    )
    return jax.tree.map(jnp.asarray, lesson)


def test_the_loss_of_both_roles(start):
    agent, lesson = made(proposer_coef=0.3, clip_low=0.1), random_lesson()
    params = start.params
    (loss, metrics), read = jax.jit(
        lambda p: (agent.loss(p, lesson, KEY), read_as_a_whole(agent, p, lesson))
    )(params)

    def gain(new, old, advantage):
        r = math.exp(new - old)
        return min(r * advantage, min(max(r, 0.9), 1.2) * advantage)

    answered, proposed = (np.asarray(x, np.float64) for x in read)
    of_solver = [
        gain(answered[i, g], float(lesson.log_prob[i, g]), float(lesson.advantage[i, g]))
        for i in range(4)
        for g in range(3)
    ]
    old = lesson.proposals.log_prob
    of_proposer = [
        gain(proposed[i, t], float(old[i, t]), float(lesson.proposal_advantage[i]))
        for i in range(4)
        for t in range(10)
    ]
    expected = -np.mean(of_solver) - 0.3 * np.mean(of_proposer)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["proposer_loss"]) == pytest.approx(-np.mean(of_proposer), rel=1e-4)
    assert 0 < float(metrics["clip_fraction"]) < 1


def read_as_a_whole(agent, params, lesson):
    """Log-probabilities of each answer (4, 3) after its task, and of proposals (4, 10)."""
    prompts, answers = repeated(lesson.prompt, 3), lesson.answers.reshape(-1, 1)
    answered = agent.distribution(params, prompts, answers).log_prob(answers).reshape(4, 3)
    whole = jnp.concatenate([jnp.full((4, 1), 26), lesson.proposals.tokens], axis=1)
    logits = agent.make_network().apply(params, whole[:, :-1]).logits
    chances = jax.nn.log_softmax(logits)
    proposed = jnp.take_along_axis(chances, lesson.proposals.tokens[..., None], -1)[..., 0]
    return answered, proposed


def test_pretraining_is_for_both_roles(start):
    agent, lesson = made(), random_lesson()
    tokens = lesson.proposals.tokens
    lesson = lesson._replace(prompt=tokens[:, :-1], answers=repeated(tokens[:, -1:].T, 3).T)
    loss, (answered, proposed) = jax.jit(
        lambda p: (
            agent.cross_entropy(p, tokens[:, :-1], tokens[:, -1:]),
            read_as_a_whole(agent, p, lesson),
        )
    )(start.params)
    assert float(loss) == pytest.approx(-float(answered.mean() + proposed.mean()), rel=1e-5)


# What does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"env": Sum()}, "selfplay: sequences/sum has no run: it needs an executor"),
        ({"pool_size": 3}, "pool_size=3 is less than 4, the greater of num_prompts 4"),
        ({"num_minibatches": 3}, "num_minibatches=3 does not divide num_prompts=4"),
        ({"gate_leak": 1.5}, r"gate_leak=1.5 is outside \[0, 1\]"),
        ({"solver_reward": "majority"}, "is not one of grounded, intrinsic"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        made(**changes)


# A sweep ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gates_are_one_population():
    population = jaxrl.sweep(made(solver_reward="intrinsic"), {"gate_leak": [0.0, 1.0]}, seeds=2)
    assert len(population.batches) == 1
    valid = population.history.metrics["valid_tasks"]
    assert [row["gate_leak"] for row in population.table] == [0.0, 0.0, 1.0, 1.0]
    assert (valid[:2] == 1).all()
    assert (valid[2:, -1] < 1).all()
    metrics = population.history.metrics
    np.testing.assert_allclose(
        metrics["reward_gap"], metrics["agreement"] - metrics["accuracy"], atol=1e-6
    )
