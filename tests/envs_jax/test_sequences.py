"""Sequence tasks: verifiers against plain Python, and the environments around them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.sequences import TASKS, dsl
from tests.envs_jax.suite_checks import check_environment

KEYS = jax.random.split(jax.random.key(0), 500)


def made(name, **options):
    return envs_jax.make(f"sequences/{name}", **options)


def judged(env, params, answers):
    """Prompts for KEYS, and the verdicts on answers (500, L)."""
    prompts = jax.vmap(env.prompt, (0, None))(KEYS, params)
    verdicts = jax.vmap(env.verify, (0, 0, None))(prompts, jnp.asarray(answers), params)
    return prompts, jax.tree.map(np.asarray, verdicts)


def random_answers(env):
    return jax.random.randint(
        jax.random.key(1), (len(KEYS), env.answer_length), 0, env.vocabulary, jnp.int32
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_an_environment(name):
    env, params = check_environment(f"sequences/{name}")
    obs, state = env.reset(KEYS[0], params)
    assert float(obs.sum()) > 0
    stepped = env.step_env(KEYS[0], state, jnp.int32(0), params)
    assert stepped[1].time == 1
    assert stepped[4].keys() == {"correct"}


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("pareto", "router")])
def test_demonstrations_are_right(name):
    env, params = made(name)
    prompts = jax.vmap(env.prompt, (0, None))(KEYS, params)
    answers = jax.vmap(env.demonstration, (0, 0, None))(KEYS, prompts, params)
    _, verdicts = judged(env, params, answers)
    assert verdicts.correct.min() == 1
    wrong = judged(env, params, (answers + 1) % env.vocabulary)[1]
    assert wrong.correct.mean() < 0.5


def test_an_episode_pays_what_the_verifier_says():
    env, params = made("parity")
    for key in KEYS[:3]:
        obs, state = env.reset(key, params)
        prompt, tokens = state.prompt, np.full(env.answer_length, 2)
        np.testing.assert_array_equal(obs[: env.prompt_length].argmax(-1), prompt)
        assert float(obs[env.prompt_length :].max()) == 0
        for t, token in enumerate((0, 1, 2)):
            tokens[t] = token
            obs, state, reward, terminated, info = env.step_env(key, state, token, params)
            assert bool(terminated) == (token == 2)
        np.testing.assert_array_equal(obs[env.prompt_length :][:3].argmax(-1), [0, 1, 2])
        verdict = env.verify(prompt, jnp.asarray(tokens), params)
        assert float(reward) == float(verdict.reward) == float(info["correct"])


def test_sum():
    env, params = made("sum")
    params = params.replace(modulus=jnp.int32(7))
    answers = random_answers(env)
    prompts, verdicts = judged(env, params, answers)
    assert prompts.max() == 6
    pairs = zip(prompts.tolist(), answers.tolist(), strict=True)
    right = [(a + b) % 7 == answer[1] for (a, b), answer in pairs]
    np.testing.assert_array_equal(verdicts.correct, right)
    assert 0 < np.mean(right) < 0.3
    with pytest.raises(ValueError, match="digits=1 is less than 2"):
        made("sum", digits=1)


def test_two_tasks():
    env, params = made("two_tasks", terms=4)
    answers = random_answers(env)
    for target in (0.0, 0.3, 1.0):
        prompts, verdicts = judged(env, params.replace(target=jnp.float32(target)), answers)
        assert abs((prompts[:, 0] == 10).mean() - target) <= 0.08 * (0 < target < 1)
        assert set(prompts[:, 0].tolist()) <= {10, 11}
        assert prompts[:, 1:].max() == 9
    prompts, verdicts = judged(env, params, answers)
    for i, (prompt, answer) in enumerate(zip(prompts.tolist(), answers.tolist(), strict=True)):
        task, value, *digits = prompt
        running = []
        for digit in digits:
            value += digit if task == 10 else -digit
            running.append(value % 10)
        right = [x == y for x, y in zip(answer, running, strict=True)]
        assert verdicts.reward[i] == verdicts.correct[i] == right[-1]
        np.testing.assert_allclose(verdicts.rewards[i], [right[-1], np.mean(right)], rtol=1e-6)
    assert 0 < verdicts.correct.mean() < 0.3
    for option, line in (("digits", "digits=1 is less than 2"), ("terms", "terms=1 is less")):
        with pytest.raises(ValueError, match=line):
            made("two_tasks", **{option: 1})


@pytest.mark.parametrize("partial_credit", [0.0, 0.5])
def test_parity(partial_credit):
    env, params = made("parity")
    params = params.replace(partial=jnp.float32(partial_credit))
    answers = random_answers(env)
    prompts, verdicts = judged(env, params, answers)
    lengths = set()
    for i, (prompt, answer) in enumerate(zip(prompts.tolist(), answers.tolist(), strict=True)):
        bits = [x for x in prompt if x != 2]
        lengths.add(len(bits))
        given = answer[: answer.index(2)] if 2 in answer else answer
        right = bool(given) and given[-1] == sum(bits) % 2
        running = [sum(bits[: j + 1]) % 2 for j in range(len(bits))]
        share = sum(a == b for a, b in zip(given, running, strict=False)) / len(bits)
        assert verdicts.correct[i] == right
        expected = (1 - partial_credit) * right + partial_credit * share
        assert verdicts.reward[i] == pytest.approx(expected, abs=1e-6)
        np.testing.assert_allclose(verdicts.rewards[i], [right, share], rtol=1e-6)
    assert lengths == {4, 5, 6, 7, 8}


def test_pareto():
    env, params = made("pareto")
    params = params.replace(weight=jnp.float32(0.3))
    answers = random_answers(env)
    _, verdicts = judged(env, params, answers)

    def vector(token):
        t = np.pi / 2 * (token % 16) / 15
        return (1 if token < 16 else 0.7) * np.array([np.cos(t), np.sin(t)])

    best = max(vector(b) @ [0.3, 0.7] for b in range(16))
    for i, answer in enumerate(answers.tolist()):
        rewards = [vector(token) for token in answer]
        np.testing.assert_allclose(verdicts.rewards[i], rewards, atol=1e-6)
        reward = max(r @ [0.3, 0.7] for r in rewards)
        assert verdicts.reward[i] == pytest.approx(reward, rel=1e-5)
        assert verdicts.correct[i] == (reward > best - 1e-4)
    # The same set in another order is the same answer.
    turned = judged(env, params, answers[:, ::-1])[1]
    np.testing.assert_array_equal(turned.answer, verdicts.answer)
    assert len(set(verdicts.answer.tolist())) == len({tuple(sorted(x)) for x in answers.tolist()})
    # No bin is better than another in both; all dominated ones are worse in both than theirs.
    front = np.asarray(env.vectors(params))[:16]
    assert not (front[:, None] > front[None] + 1e-6).all(-1).any()


def evaluate(tokens, x, y):
    """The value of an expression, None where it is invalid: by a recursion from the left."""
    tokens = list(tokens)
    while tokens and tokens[-1] == dsl.END:
        tokens.pop()

    def parse(rest):
        if not rest:
            raise ValueError
        head, rest = rest[0], rest[1:]
        if head == dsl.END:
            raise ValueError
        if head < dsl.ADD:
            return {dsl.X: x, dsl.Y: y}.get(head, head) % 17, rest
        a, rest = parse(rest)
        if head == dsl.NEG:
            return -a % 17, rest
        b, rest = parse(rest)
        if head == dsl.MOD and b == 0:
            raise ValueError
        operators = {
            dsl.ADD: lambda: a + b,
            dsl.SUB: lambda: a - b,
            dsl.MUL: lambda: a * b,
            dsl.MOD: lambda: a % b,
            dsl.MAX: lambda: max(a, b),
            dsl.MIN: lambda: min(a, b),
        }
        return operators[head]() % 17, rest

    try:
        value, rest = parse(tokens)
    except ValueError:
        return None
    return None if rest else value


def test_the_stack_machine_is_an_evaluator():
    """On 5,000 random strings and as many well-formed expressions."""
    rng = np.random.default_rng(0)
    strings = rng.integers(0, 27, (5000, 7))
    ends = rng.integers(1, 8, 5000)  # most are cut short, and some of these are expressions
    strings[np.arange(7) >= ends[:, None]] = dsl.END
    keys = jax.random.split(jax.random.key(0), 5000)
    wellformed = jax.jit(jax.vmap(partial(dsl.random_expression, most_operators=jnp.int32(6))))(
        keys
    )
    expressions = np.concatenate([strings, wellformed])
    inputs = rng.integers(0, 17, (2, len(expressions)))
    value, valid = map(np.asarray, jax.jit(jax.vmap(dsl.run))(jnp.asarray(expressions), *inputs))
    expected = [evaluate(*row) for row in zip(expressions.tolist(), *inputs.tolist(), strict=True)]
    np.testing.assert_array_equal(valid, [x is not None for x in expected])
    np.testing.assert_array_equal(value, [x or 0 for x in expected])
    assert 0.05 < valid[:5000].mean() < 0.5
    # What is drawn is well-formed: only MOD 0 makes it invalid, and all operators occur.
    assert valid[5000:].mean() > 0.9
    assert set(np.asarray(wellformed).ravel()) == set(range(10)) | set(range(17, 27))


def test_prompts_of_the_dsl_are_valid():
    env, params = made("dsl")
    answers = random_answers(env)
    prompts, verdicts = judged(env, params, answers)
    values = [evaluate(p[2:], p[0], p[1]) for p in prompts.tolist()]
    assert None not in values
    np.testing.assert_array_equal(verdicts.correct, np.asarray(answers)[:, 0] == values)
    np.testing.assert_array_equal(verdicts.rewards[:, 1], np.asarray(answers)[:, 0] < 17)
    operators = ((prompts >= dsl.ADD) & (prompts < dsl.END))[:, 2:].sum(-1)
    assert set(operators.tolist()) == {0, 1, 2, 3}


def routed(env, params, task, answer):
    """Right, and the reward, of a router's calls: written out."""
    calls, votes, last = 0, [0] * env.choices, None
    for turn, token in enumerate(answer):
        if token == env.end_token:
            break
        calls += 1
        said = int(task.said[turn, token])
        if said >= 0:
            votes[said] += 1
            last = said
    if last is None:
        decided = -1
    elif float(params.last) == 1:
        decided = last
    else:
        leaders = [i for i, n in enumerate(votes) if n == max(votes)]
        decided = last if last in leaders else leaders[0]
    right = decided == int(task.truth)
    return right, right - float(params.cost) * calls


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_router(last):
    env, params = made("router")
    params = params.replace(
        last=jnp.float32(last), cost=jnp.float32(0.1), present=params.present.at[2].set(False)
    )
    answers = random_answers(env)
    tasks, verdicts = judged(env, params, answers)
    tasks = jax.tree.map(np.asarray, tasks)
    for i, answer in enumerate(answers.tolist()):
        task = jax.tree.map(lambda x, i=i: x[i], tasks)
        right, reward = routed(env, params, task, answer)
        assert verdicts.correct[i] == right
        assert verdicts.reward[i] == pytest.approx(reward, abs=1e-6)
    assert (tasks.said[:, :, 2] == -1).all()
    # Experts are right as often as their accuracy says.
    domain = tasks.embedding.argmax(-1)
    hits = (tasks.said == tasks.truth[:, None, None])[domain == 0].mean((0, 1))
    expected = np.asarray(params.accuracy[:, 0]) * np.asarray(params.present)
    np.testing.assert_allclose(hits, expected, atol=0.08)


def test_a_router_sees_what_it_has_asked_for_alone():
    env, params = made("router")
    task = env.prompt(KEYS[0], params)
    tokens = jnp.asarray([3, 1, 6, 0])
    hidden = task.replace(said=jnp.where(task.said >= 0, 0, -1), truth=jnp.int32(9))
    hidden = hidden.replace(said=hidden.said.at[0, 3].set(task.said[0, 3]))
    for time in (0, 1, 2):
        one, other = (env.observe(x, tokens, jnp.int32(time), params) for x in (task, hidden))
        assert bool((one == other).all()) == (time < 2 or int(task.said[1, 1]) == 0)
    assert int(task.said[1, 1]) != 0
    parts = env.parts_of(env.observe(task, tokens, jnp.int32(2), params))
    np.testing.assert_array_equal(parts["asked"].argmax(-1)[:2], [3, 1])
    assert float(parts["votes"].sum()) == 2
    np.testing.assert_array_equal(parts["features"], params.features)
