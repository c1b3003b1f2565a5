"""VPO: scores of sets against quadrature, its advantages, fronts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from agents.sequences.vpo import VPO
from envs_jax.sequences import Pareto, Parity, Sum
from jaxrl.loops.sequence import Answers, SequenceState
from jaxrl.parts.sequences import Verdict, best_of, group_z_score, non_dominated, set_score

KEY = jax.random.key(0)
PARETO = Pareto(answers=3)


def made(env=PARETO, **changes):
    fields = {"num_prompts": 4, "group_size": 2, "width": 8, "total_steps": 80}
    return VPO(env, env.default_params, **(fields | changes))


def drawn(key, concentration, count):
    return jax.random.dirichlet(key, jnp.full(2, concentration), (count,))


# Scores of sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [0.5, 1.0, 3.0])
def test_the_expectation_by_quadrature(concentration):
    """Two objectives: w_1 ~ Beta(a, a); the weights that the agent draws are these."""
    rewards = np.asarray([[1.0, 0.1], [0.7, 0.8], [0.2, 0.9], [0.3, 0.2]])

    def best(u):
        return max(u * a + (1 - u) * b for a, b in rewards) * stats.beta.pdf(
            u, concentration, concentration
        )

    exact = integrate.quad(best, 0, 1, points=[0.25, 0.5, 0.75], limit=200)[0]
    weights = made(num_weights=5000, concentration=concentration).weights(KEY)
    assert weights.shape == (4, 5000, 2)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    scores = np.asarray(set_score(jnp.asarray(rewards), weights.reshape(-1, 2)))
    assert float(scores) == pytest.approx(exact, abs=0.005)
    assert exact > rewards.mean(1).max() + 0.01  # not the best by mean weights


def test_sets_have_no_order_and_jensen():
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.random((5, 3, 2)), jnp.float32)
    weights = drawn(KEY, 1.0, 32)
    score = set_score(rewards, weights[None])
    for order in itertools.permutations(range(3)):
        np.testing.assert_allclose(set_score(rewards[:, jnp.asarray(order)], weights), score)
    by_mean = (rewards @ weights.mean(0)).max(-1)
    assert (score >= by_mean - 1e-6).all()
    assert (score > by_mean + 0.01).any()
    alike = jnp.broadcast_to(rewards[:, :1], rewards.shape)
    np.testing.assert_allclose(set_score(alike, weights), alike[:, 0] @ weights.mean(0), rtol=1e-6)
    loop = [np.mean([max(float(w @ r) for r in rs) for w in weights]) for rs in rewards]
    np.testing.assert_allclose(score, loop, rtol=1e-5)


# Advantages -------------------------------------------------------------------------------------


def judged(rewards):
    """Answers of these rewards (N, G, ...)."""
    one = jnp.zeros(rewards.shape[:2])
    verdict = Verdict(one, one, rewards, one.astype(jnp.int32))
    return Answers((), (), (), (), (), (), verdict)


STATE = SequenceState(KEY, (), (), (), ())


def test_weights_are_shared_within_a_group_and_not_between_groups():
    rng = np.random.default_rng(1)
    sets = rng.random((1, 3, 3, 2)).astype(np.float32)
    rewards = jnp.asarray(np.tile(sets[:, [0, 1, 0, 2]], (4, 1, 1, 1)))  # all groups alike
    agent = made(group_size=4, num_weights=4)
    advantage, _, metrics = agent.advantages(STATE, judged(rewards), KEY)
    np.testing.assert_array_equal(advantage[:, 0], advantage[:, 2])
    assert np.ptp(np.asarray(advantage), axis=0).max() > 1e-3
    score = set_score(rewards, agent.weights(KEY)[:, None])
    np.testing.assert_allclose(advantage, group_z_score(score), rtol=1e-5)
    assert float(metrics["set_score"]) == pytest.approx(float(score.mean()))


def test_sets_of_one_answer_are_grpo_by_the_mean_weights():
    env = Parity(bits=2)
    agent = made(env, group_size=3, num_weights=5)
    rewards = jnp.asarray(np.random.default_rng(2).random((4, 3, 2)), jnp.float32)
    advantage = agent.advantages(STATE, judged(rewards), KEY)[0]
    scalar = jnp.einsum("ngc,nc->ng", rewards, agent.weights(KEY).mean(1))
    np.testing.assert_allclose(advantage, group_z_score(scalar), rtol=1e-3, atol=1e-3)


def test_one_channel_is_grpo_and_has_nothing_to_weigh():
    agent = made(Sum(digits=3))
    reward = jnp.asarray([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    advantage = agent.advantages(STATE, judged(reward[..., None]), KEY)[0]
    np.testing.assert_allclose(advantage, group_z_score(reward))
    with pytest.raises(ValueError, match="num_weights=8 has no effect where rewards have one"):
        made(Sum(digits=3), num_weights=8)


# Fronts -----------------------------------------------------------------------------------------


def test_who_is_dominated_by_a_loop():
    rewards = np.random.default_rng(3).integers(0, 4, (50, 5, 2)).astype(np.float32)
    got = np.asarray(non_dominated(jnp.asarray(rewards)))
    for rows, flags in zip(rewards.tolist(), got.tolist(), strict=True):
        for j, (mine, flag) in enumerate(zip(rows, flags, strict=True)):
            beaten = any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in rows)
            assert flag == (not beaten and mine not in rows[:j])


def test_coverage_of_the_front():
    """All bins are worth what a quarter circle is, E |w|, less what lies between two bins."""
    vectors = PARETO.vectors(PARETO.default_params)
    weights = drawn(KEY, 1.0, 4000)
    front, one = (float(set_score(x, weights)) for x in (vectors[:16], vectors[8:9]))
    exact = integrate.quad(lambda u: (u**2 + (1 - u) ** 2) ** 0.5, 0, 1)[0]
    assert 0.998 * exact - 0.004 < front < exact + 0.004
    assert float(set_score(vectors, weights)) == pytest.approx(front)  # nothing dominated helps
    assert one < 0.9 * front
    assert non_dominated(vectors).tolist() == [True] * 16 + [False] * 16
    # Spread out over the front, three answers are worth more than the best one three times.
    spread, alike = ([2, 7, 13], [7, 7, 7])
    verdict = jax.vmap(PARETO.verify, (None, 0, None))(
        (), jnp.asarray([spread, alike]), PARETO.default_params
    )
    scores = set_score(verdict.rewards, weights)
    assert float(scores[0]) > 1.1 * float(scores[1])
    assert non_dominated(verdict.rewards).sum(-1).tolist() == [3, 1]
    # The best of k sets by one weight, without bias: both sets once.
    worth = (verdict.rewards @ jnp.asarray([1.0, 0.0])).max(-1)
    assert float(best_of(worth, 1)) == pytest.approx(float(worth.mean()))
    assert float(best_of(worth, 2)) == pytest.approx(float(worth.max()))
