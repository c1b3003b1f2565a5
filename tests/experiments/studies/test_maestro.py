"""The best router that there is: its return, against cases written out and against sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from experiments.studies import maestro


def test_one_turn():
    """One call, or none where it costs more than it is worth."""
    assert maestro.stopping(0.9, 4, 1, 0.02) == pytest.approx((0.88, 1))
    assert maestro.stopping(0.3, 4, 1, 0.4) == (0, 0)
    # A second answer that costs nothing is not worth more, if the later one counts of two.
    assert maestro.stopping(0.8, 2, 2, 0.0)[0] == pytest.approx(0.8)


def test_two_of_three():
    """A third answer is asked for where the first two differ: p^2 (3 - 2 p) with two choices."""
    p, cost = 0.8, 0.01
    differ = 2 * p * (1 - p)
    expected = p**2 * (3 - 2 * p) - cost * (2 + differ)
    assert maestro.stopping(p, 2, 3, cost) == pytest.approx((expected, 2 + differ))
    # The last answer is as good: one stops where two agree, and else the third one decides.
    assert maestro.stopping(p, 2, 3, cost, last=1.0) == pytest.approx((expected, 2 + differ))


def test_calls_fall_as_they_get_dearer():
    worth = [maestro.stopping(0.7, 3, 4, cost) for cost in np.linspace(0, 0.8, 17)]
    returns, calls = np.transpose(worth)
    assert (np.diff(returns) <= 1e-12).all()
    assert (np.diff(calls) <= 1e-12).all()
    assert calls[0] > 2
    assert calls[-1] == 0


@pytest.mark.parametrize("cost", [0.02, 0.1])
def test_the_environment_pays_the_oracle_what_it_should(cost):
    """One that asks the best expert up to three times, as it pays, in sampled tasks."""
    env, params = envs_jax.make("sequences/router", turns=3)
    params = params.replace(cost=jnp.float32(cost), present=params.present.at[0].set(False))
    expected, calls = maestro.oracle(env, params)

    @jax.jit
    def tasks_of(keys):
        return jax.vmap(env.prompt, (0, None))(keys, params)

    tasks = tasks_of(jax.random.split(jax.random.key(0), 20_000))
    skill = jnp.where(params.present[:, None], params.accuracy, -1)
    expert = skill.argmax(0)[tasks.embedding.argmax(-1)]
    said = jnp.take_along_axis(tasks.said, expert[:, None, None], axis=-1)[..., 0]
    # At 0.9 of four, a second and a third answer pay at 0.02, and nothing but one at 0.1.
    number = jnp.where(said[:, 0] == said[:, 1], 2, 3) if cost == 0.02 else jnp.ones(20_000)
    turns = jnp.arange(3)
    answers = jnp.where(turns < number[:, None], expert[:, None], env.end_token)
    verdict = jax.jit(jax.vmap(env.verify, (0, 0, None)))(tasks, answers, params)
    error = float(verdict.reward.std()) / np.sqrt(20_000)
    assert float(verdict.reward.mean()) == pytest.approx(expected, abs=4 * error)
    assert float(number.mean()) == pytest.approx(calls, abs=0.02)


def test_a_new_expert_is_worth_something():
    env, params = envs_jax.make("sequences/router")
    larger, with_new = maestro.with_expert(env, params)
    assert larger.experts == 7
    np.testing.assert_array_equal(with_new.accuracy[:-1], params.accuracy)
    gain = maestro.oracle(larger, with_new)[0] - maestro.oracle(env, params)[0]
    best = [maestro.stopping(p, 4, 4, float(params.cost))[0] for p in (0.99, 0.9)]
    assert gain == pytest.approx((best[0] - best[1]) / 4, abs=1e-6)
    away = with_new.replace(present=with_new.present.at[-1].set(False))
    assert maestro.oracle(larger, away) == maestro.oracle(env, params)
