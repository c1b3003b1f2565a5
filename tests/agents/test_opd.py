"""OPD: its gradient by enumeration, its states, its teacher, and its arms beside GRPO."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.sequences.grpo import GRPO
from agents.sequences.opd import OPD, Lesson, Memory
from envs_jax.sequences import Parity, Sum, TwoTasks
from jaxrl.loops.sequence import Batch, SequenceState
from jaxrl.parts.sequences import answer_mask

KEY = jax.random.key(0)
SUM, PARITY = Sum(digits=2), Parity(bits=2)
TINY = {"num_prompts": 4, "group_size": 2, "network": "tabular", "total_steps": 80}
OF_TEACHER = {"teacher_steps": 1}


def made(cls=OPD, env=SUM, **changes):
    return cls(env, env.default_params, **TINY | changes)


def table(agent, seed, scale=0.7):
    """Parameters none of which is 0."""
    shape = jax.eval_shape(agent.init_params, KEY)["params"]["rows"].shape
    rows = scale * np.random.default_rng(seed).normal(size=shape)
    return {"params": {"rows": jnp.asarray(rows, jnp.float32)}}


def state_of(params, teacher):
    return SequenceState(KEY, params, (), params, Memory((), teacher))


# The gradient, by enumeration -------------------------------------------------------------------

PROMPTS = jnp.asarray(list(itertools.product(range(2), repeat=2)), jnp.int32)
ANSWERS = jnp.asarray(list(itertools.product(range(2), repeat=2)), jnp.int32)
EVERY = jnp.repeat(PROMPTS, 4, 0), jnp.tile(ANSWERS, (4, 1))  # every answer to every prompt


def rows_of(gradient):
    return np.asarray(gradient["params"]["rows"], np.float64).ravel()


def log_probs(agent, params):
    """Of all tokens at the states of every answer to every prompt, (16, 2, 2)."""
    return jax.nn.log_softmax(agent.distribution(params, *EVERY).logits)


def chosen(log_probs):
    """Of the answers' tokens, (16, 2)."""
    return jnp.take_along_axis(log_probs, EVERY[1][..., None], axis=-1)[..., 0]


def of_answers(agent, params, teacher):
    """The mean over prompts of KL(policy || teacher) of whole answers: over all answers."""
    mine, theirs = (chosen(log_probs(agent, x)).sum(-1) for x in (params, teacher))
    return (jnp.exp(mine) * (mine - theirs)).sum() / 4


def at_fixed_states(agent, params, teacher, writer):
    """The divergences at states that another policy writes, over all of its answers."""
    weight = jnp.exp(chosen(log_probs(agent, writer)).sum(-1))
    mine, theirs = log_probs(agent, params), log_probs(agent, teacher)
    return (weight * (jnp.exp(mine) * (mine - theirs)).sum((-1, -2))).sum() / 4


@pytest.fixture(scope="module")
def exact():
    """An agent with the state term, a policy, a teacher, and both gradients, enumerated."""
    agent = made(state_term=True, **OF_TEACHER)
    params, teacher = table(agent, 0), table(agent, 1, scale=1.5)

    @jax.jit
    def gradients(params):
        whole = jax.grad(lambda p: of_answers(agent, p, teacher))(params)
        return whole, jax.grad(lambda p: at_fixed_states(agent, p, teacher, params))(params)

    return agent, params, teacher, *map(rows_of, gradients(params))


def expected_gradient(agent, params, teacher):
    """Of the agent's loss of each answer, weighed by how likely it is; without a baseline."""

    @jax.jit
    def expected(params):
        weight = jnp.exp(chosen(log_probs(agent, params)).sum(-1)) / 4
        mine, theirs = log_probs(agent, params), log_probs(agent, teacher)
        cost = (jnp.exp(mine) * (mine - theirs)).sum(-1)
        later = jnp.stack([cost[:, 1], jnp.zeros(16)], axis=1)  # two tokens
        lesson = Lesson(*EVERY, jnp.ones((16, 2)), teacher=theirs, later=later)

        def gradient(one):
            one = jax.tree.map(lambda x: x[None], one)
            return jax.grad(lambda p: agent.loss(p, one, KEY)[0])(params)

        return jax.tree.map(lambda g: jnp.tensordot(weight, g, 1), jax.vmap(gradient)(lesson))

    return rows_of(expected(params))


def test_with_the_state_term_it_is_the_gradient_of_the_divergence_of_answers(exact):
    agent, params, teacher, whole, _ = exact
    np.testing.assert_allclose(expected_gradient(agent, params, teacher), whole, atol=1e-6)


def test_the_usual_gradient_leaves_out_which_states_are_reached(exact):
    """It is that of the divergences at states that are held fixed, and not the whole one."""
    agent, params, teacher, whole, fixed = exact
    usual = expected_gradient(agent.replace(state_term=False), params, teacher)
    np.testing.assert_allclose(usual, fixed, atol=1e-6)
    assert np.abs(whole - fixed).max() > 0.01
    second = 2 * (2 + 4)  # from the rows after three tokens on: nothing comes later
    np.testing.assert_allclose(whole[second:], fixed[second:], atol=1e-6)


def test_with_its_baseline_the_state_term_is_unbiased(exact):
    """What the agent makes of answers that it draws, on average."""
    agent, params, teacher, whole, fixed = exact
    agent = agent.replace(group_size=3, total_steps=120)
    state = state_of(params, teacher)

    def estimate(key):
        answers = agent.answers(state, PROMPTS, key)
        batch = agent.batch(state, answers, key)[0]
        return jax.grad(lambda p: agent.loss(p, batch, key)[0])(params)["params"]["rows"]

    keys = jax.random.split(KEY, 4000)
    drawn = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64).reshape(4000, -1)
    error = drawn.std(0) / math.sqrt(4000)
    moves = error > 1e-9
    off = np.abs((drawn.mean(0) - whole)[moves] / error[moves])
    assert off.max() < 4
    assert np.abs((drawn.mean(0) - fixed)[moves] / error[moves]).max() > 6


# States -----------------------------------------------------------------------------------------


def answered_rightly(agent, state):
    """Answers as if the policy had written the demonstrations."""
    answers = agent.answers(state, agent.fresh_prompts(KEY), KEY)
    flat = answers.prompt.reshape(-1, answers.prompt.shape[-1])
    right = agent.demonstrations(KEY, flat).reshape(answers.tokens.shape)
    return answers._replace(tokens=right, mask=answer_mask(right, agent.env.end_token))


@pytest.mark.parametrize("supervision", ["demonstrations", "teacher"])
def test_identical_states_give_identical_gradients(supervision):
    gradients, own = [], []
    for source in ("dataset", "learner"):
        agent = made(env=PARITY, supervision=supervision, state_source=source)
        params, teacher = table(agent, 0), table(agent, 1)
        state = state_of(params, teacher if supervision == "teacher" else ())

        @jax.jit
        def both(state):
            gradient = jax.grad(agent.loss, has_aux=True)  # noqa: B023
            written = agent.answers(state, agent.fresh_prompts(KEY), KEY)  # noqa: B023
            lessons = answered_rightly(agent, state), written  # noqa: B023
            return [
                gradient(state.params, agent.batch(state, x, KEY)[0], KEY)[0]  # noqa: B023
                for x in lessons
            ]

        right, written = map(rows_of, both(state))
        gradients.append(right)
        own.append(written)
    np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-7)
    assert np.abs(gradients[0]).max() > 0.01
    np.testing.assert_allclose(own[0], gradients[0], atol=1e-7)  # the dataset's, whatever it writes
    assert np.abs(own[1] - gradients[1]).max() > 0.01


def test_what_is_right_stands_in_the_same_place():
    """At the learner's states the target is the demonstration's token, and the mask its own."""
    agent = made(env=PARITY, supervision="demonstrations", state_source="learner")
    params = table(agent, 0)
    state = state_of(params, ())

    @jax.jit
    def learnt(state):
        answers = agent.answers(state, agent.fresh_prompts(KEY), KEY)
        lesson = agent.batch(state, answers, KEY)[0]
        log_prob = jax.nn.log_softmax(agent.distribution(params, *lesson[:2]).logits)
        return lesson, log_prob, agent.loss(params, lesson, KEY)[0]

    lesson, log_prob, loss = jax.tree.map(np.asarray, learnt(state))
    total = 0.0
    for prompt, tokens, right, row in zip(*lesson[:2], lesson.right, log_prob, strict=True):
        bits = [x for x in prompt.tolist() if x != 2]
        running = [sum(bits[: i + 1]) % 2 for i in range(len(bits))]
        wanted = [*running, 2, 2, 2][:3]
        assert right.tolist() == wanted
        for t in range(3):
            total -= float(row[t, wanted[t]])
            if tokens[t] == 2:
                break
    assert (lesson.tokens != lesson.right).any()
    assert lesson.mask.mean() < 1
    assert float(loss) == pytest.approx(total / 8, rel=1e-5)


# Supervision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_the_divergence_from_the_teacher(divergence):
    agent = made(env=PARITY, divergence=divergence)
    rng = np.random.default_rng(0)
    teacher, mask = rng.normal(size=(5, 3, 3)), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]] * 2)[:5]
    prompts, tokens = rng.integers(0, 2, (5, 2)), rng.integers(0, 2, (5, 3))
    params = table(agent, 0)
    arrays = (jnp.asarray(x) for x in (prompts, tokens, mask.astype(np.float32)))
    lesson = Lesson(*arrays, teacher=jnp.asarray(teacher))
    loss, metrics = jax.jit(agent.loss)(params, lesson, KEY)
    logits = np.asarray(agent.distribution(params, *lesson[:2]).logits, np.float64)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, teacher))
    if divergence == "forward":
        p, q = q, p
    kl = (p * np.log(p / q)).sum(-1)
    assert float(loss) == pytest.approx((kl * mask).sum() / 5, rel=1e-5)
    assert float(metrics["teacher_kl"]) == pytest.approx((kl * mask).sum() / mask.sum(), rel=1e-5)


def test_rewards_are_grpo_summed_over_tokens():
    """To the same numbers, at a policy that has moved away from the one that wrote."""
    limits = {"clip_low": 0.1, "clip_high": 0.15, "group_size": 8}
    opd = made(env=PARITY, supervision="rewards", **limits)
    grpo = made(GRPO, env=PARITY, weigh="sum", **limits)
    state, later = state_of(table(opd, 0), ()), table(opd, 2)

    @jax.jit
    def learnt(state):
        answers = opd.answers(state, opd.fresh_prompts(KEY), KEY)
        gradients = []
        for agent in (opd, grpo):
            batch = agent.batch(state, answers, KEY)[0]
            gradients.append(jax.grad(agent.loss, has_aux=True)(later, batch, KEY))
        assert isinstance(batch, Batch)
        return gradients

    (mine, own), (theirs, metrics) = learnt(state)
    np.testing.assert_allclose(rows_of(mine), rows_of(theirs), atol=1e-6)
    assert np.abs(rows_of(mine)).max() > 0.01
    assert float(own["clip_fraction"]) == float(metrics["clip_fraction"]) > 0


def test_the_teacher_has_learnt_the_dataset_alone():
    agent = made(dataset_size=2, teacher_steps=60, teacher_learning_rate=0.2, num_prompts=8)
    state = jax.jit(agent.init)(jax.random.key(3))
    pool, teacher = state.memory
    assert pool.shape == (2, 2)
    known = {tuple(x) for x in pool.tolist()}
    logits = agent.distribution(teacher, *EVERY).logits
    for prompt, tokens, row in zip(*EVERY, np.asarray(logits), strict=True):
        a, b = prompt.tolist()
        right = [(a + b) // 2, (a + b) % 2]
        if (a, b) not in known:  # rows of its own that nothing has reached
            if tokens[0] == 0:
                assert (row[1] == 0).all()
        elif tokens.tolist() == right:
            assert row.argmax(-1).tolist() == right
            assert np.abs(row[:, 0] - row[:, 1]).min() > 1
    drawn = agent.prompts(state, KEY)
    assert {tuple(x) for x in drawn.tolist()} == known
    assert (state.params["params"]["rows"] == 0).all()


def test_a_teacher_starts_from_what_is_adopted():
    agent = made(teacher_steps=1, teacher_learning_rate=1e-6)
    learnt = SequenceState(KEY, table(agent, 5), (), (), ())
    state = jax.jit(agent.adopt)(learnt)
    rows = [x["params"]["rows"] for x in (state.params, state.memory.teacher, learnt.params)]
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_allclose(rows[1], rows[2], atol=1e-5)
    assert (rows[1] != rows[2]).any()


# What does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"state_source": "dataset", "state_term": True}, "state_term=True has no effect with st"),
        ({"supervision": "rewards", "state_source": "dataset"}, "has no effect with supervision=r"),
        ({"supervision": "rewards", "teacher_steps": 3}, "teacher_steps=3 has no effect with sup"),
        ({"clip_low": 0.1}, "clip_low=0.1 has no effect with supervision=teacher"),
        ({"supervision": "labels"}, "is not one of demonstrations, teacher, rewards"),
        ({"dataset_size": -1}, r"dataset_size=-1 is outside \[0, inf\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        made(**changes)


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"state_term": True}, {"divergence": "forward"}])
def test_a_student_comes_near_its_teacher(changes):
    env = TwoTasks(digits=2, terms=2)
    sizes = {"num_prompts": 16, "group_size": 4, "learning_rate": 0.1, "total_steps": 64 * 100}
    agent = made(env=env, teacher_steps=30, teacher_learning_rate=0.1, **sizes, **changes)

    @jax.jit
    def train(state):
        return jax.lax.scan(agent.step, state, jnp.arange(100))[1]

    metrics = train(jax.jit(agent.init)(KEY))
    assert float(metrics["teacher_kl"][0]) > 0.3
    assert float(metrics["teacher_kl"][-1]) < 0.05
    assert float(metrics["accuracy"][-10:].mean()) > 0.9
