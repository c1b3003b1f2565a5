"""QED's bound, its expectile and its temperature against closed forms; learning: test_offpolicy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrl
from agents.off_policy.qed import QED, kl_bound
from jaxrl.parts.losses import expectile_loss
from jaxrl.parts.replay import Batch
from jaxrl.spaces import from_box
from tests.helpers import assert_same
from tests.probes import CHOICE, GAMMA, MATCH, ConstantReward, any_of, known_answers
from tests.probes import settings as settings_of

KEY = jax.random.key(0)
ENV = ConstantReward(continuous=True)
SMALL = {
    "num_updates": 2,
    "batch_size": 64,
    "buffer_size": 4096,
    "learning_starts": 256,
    "learning_rate": 3e-3,
    "hidden_sizes": (16,),
    "tau": 0.05,
}


def make(**changes):
    return QED(ENV, ENV.default_params, hidden_sizes=(4,), **changes)


# The bound --------------------------------------------------------------------------------------


def boltzmann_kl(q, other, alpha):
    """KL(softmax(q / alpha) || softmax(other / alpha)) in double precision."""
    logs = [x / alpha - np.logaddexp.reduce(x / alpha) for x in (q, other)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.05, 20.0), st.floats(0.1, 30.0))
def test_the_divergence_of_two_runs_is_bounded(seed, actions, ratio, scale):
    """At alpha = eps / c it is at most min(2 c, c^2 / 2), whatever the two critics."""
    rng = np.random.default_rng(seed)
    q = scale * rng.normal(size=actions)
    change = rng.choice([rng.uniform(-1, 1, actions), rng.choice([-1.0, 1.0], actions)])
    eps = float(np.abs(change).max())
    alpha = eps / ratio
    with jax.enable_x64(True):
        bound = float(kl_bound(jnp.float64(eps), jnp.float64(alpha)))
    assert bound == pytest.approx(min(2 * ratio, ratio**2 / 2), rel=1e-9)
    assert boltzmann_kl(q, q + change, alpha) <= bound * (1 + 1e-9) + 1e-12


def test_both_sides_of_the_bound_are_nearly_reached():
    """So that neither of its two numbers could be smaller by a third."""
    # Two actions at odds, equally likely between the two runs: c^2 / 2 as c falls.
    small = 0.01
    q = np.array([0.5, -0.5]) * small
    quadratic = boltzmann_kl(q, -q, 1.0)  # eps = small / 2 each way: their difference is small
    assert quadratic > 0.9 * float(kl_bound(jnp.float32(small), jnp.float32(1.0)))
    # One action that all but surely is taken by one run and not by the other.
    large = 40.0
    q = np.array([large, 0.0])
    other = np.array([0.0, large])
    assert boltzmann_kl(q, other, 1.0) > 0.45 * float(kl_bound(jnp.float32(large), jnp.float32(1)))


# The temperature --------------------------------------------------------------------------------


def test_the_temperature_is_proportional_to_the_disagreement_within_its_bounds():
    agent = make(disagreement_ratio=2.0, min_temperature=0.01, max_temperature=5.0)
    alpha = agent.temperature(jnp.array([0.0, 1e-3, 1.0, 6.0, 100.0]))
    np.testing.assert_allclose(alpha, [0.01, 0.01, 0.5, 3.0, 5.0], rtol=1e-6)
    assert jax.grad(lambda d: agent.temperature(d))(1.0) == 0
    with pytest.raises(ValueError, match=r"min_temperature=2.0 is above max_temperature=1.0"):
        make(min_temperature=2.0, max_temperature=1.0)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_what_is_regressed_is_the_expectile(level):
    """Of 1,000 disagreements: by descent, and where |level - 1(e < d)| weighs both sides alike."""
    sample = np.random.default_rng(0).gamma(2.0, 1.5, 1000)
    low, high = sample.min(), sample.max()
    for _ in range(60):  # the root of sum w (e - d), which falls in d
        middle = (low + high) / 2
        weight = np.where(sample < middle, 1 - level, level)
        low, high = (middle, high) if (weight * (sample - middle)).sum() > 0 else (low, middle)
    with jax.enable_x64(True):
        optimizer = optax.adam(0.05)
        slope = jax.grad(lambda d: expectile_loss(jnp.asarray(sample) - d, level).mean())

        def step(carry, _):
            d, state = carry
            move, state = optimizer.update(slope(d), state)
            return (d + move, state), None

        start = jnp.float64(0.0)
        (d, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=3000)
    assert float(d) == pytest.approx(low, rel=1e-4)


# The update -------------------------------------------------------------------------------------


def batch_of(rewards):
    size = len(rewards)
    obs = jnp.ones((size, 1))
    action = jnp.linspace(-1, 1, size)[:, None]
    return Batch(obs, action, jnp.asarray(rewards), jnp.ones(size, bool), obs, jnp.ones(size, bool))


def test_without_disagreement_the_temperature_is_the_lowest():
    """Two critics that are alike and see the same steps remain alike, and d falls."""
    agent = make(learning_rate=1e-2, own_share=1.0, min_temperature=0.2)
    learner = agent.init_learner(KEY, jnp.ones(1))
    alike = (learner.critics[0],) * 2
    learner = learner._replace(critics=alike, target_critics=alike)
    batch = batch_of(np.ones(8, np.float32))

    def step(learner, n):
        return agent.update(learner, batch, jax.random.fold_in(KEY, n), n)

    learner, metrics = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(600)))(learner)
    assert_same(*learner.critics)
    assert metrics["temperature"][0] > 0.3
    assert (jnp.diff(metrics["disagreement"]) < 0).all()
    assert metrics["temperature"][-1] == pytest.approx(0.2)


def test_critics_draw_steps_of_their_own():
    """Alike at first, they part; with all steps they do not (see above)."""
    agent = make(own_share=0.5)
    learner = agent.init_learner(KEY, jnp.ones(1))
    alike = (learner.critics[0],) * 2
    learner = learner._replace(critics=alike, target_critics=alike)
    batch = batch_of(np.arange(8.0, dtype=np.float32))

    def step(learner, n):
        return agent.update(learner, batch, jax.random.fold_in(KEY, n), n)[0], None

    learner, _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(5)))(learner)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), *learner.critics)
    assert max(jax.tree.leaves(apart)) > 1e-5  # the first of Adam's steps has their signs alone


@pytest.mark.parametrize("target", ["minimum", "own"])
def test_the_critics_targets(target):
    """r + gamma [Q'(s', a') - alpha(s') log pi(a'|s')], terminal states apart, by hand."""
    agent = make(target=target, own_share=1.0, gamma=0.9, disagreement_ratio=0.5)
    learner = agent.init_learner(KEY, jnp.ones(1))
    terminated = jnp.array([True, False, False, False])
    reward = jnp.array([1.0, 2.0, 0.0, -1.0])
    obs, next_obs = jnp.linspace(-1, 1, 4)[:, None], jnp.linspace(2, 0, 4)[:, None]
    action = jnp.full((4, 1), 0.3)
    batch = Batch(obs, action, reward, terminated, next_obs, jnp.ones(4, bool))
    _, metrics = jax.jit(agent.update)(learner, batch, KEY, jnp.int32(0))

    next_key = jax.random.split(KEY, 3)[0]
    dist = agent.distribution(learner.actor, next_obs)
    next_action, log_prob = dist.sample_and_log_prob(next_key)
    next_q = np.asarray(agent.q_values(learner.target_critics, next_obs, next_action))
    alpha = np.asarray(agent.disagreement(learner.disagreement, next_obs)) / 0.5
    loss = 0.0
    for i, q in enumerate(np.asarray(agent.q_values(learner.critics, obs, action))):
        for b in range(4):
            of_next = next_q[:, b].min() if target == "minimum" else next_q[i, b]
            value = of_next - alpha[b] * float(log_prob[b])
            wanted = float(reward[b]) + (0 if terminated[b] else 0.9 * value)
            loss += 0.5 * (q[b] - wanted) ** 2 / 4
    assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-5)


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reaches_the_known_answers():
    """Values of the probes under the best policy, and the best actions."""
    rows = known_answers(continuous=True)
    env = any_of(rows)
    agent = QED(env, env.default_params, total_steps=8 * 2500, gamma=GAMMA, **SMALL)
    population = jaxrl.sweep(agent, settings_of(rows))
    for i, row in enumerate(rows):
        if i in (CHOICE, MATCH):
            continue
        run = population[i]
        obs = jnp.array(row.observations)[:, None]
        action = jax.vmap(run.agent.policy(run.state))(obs, jax.random.split(KEY, len(obs)))
        action = from_box(run.agent.action_space, action)
        actual = run.agent.q_values(run.state.learner.critics, obs, action).mean(0)
        expected = np.max(row.q, axis=1)
        np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.1, err_msg=str(i))
    returns = population.evaluate(episodes=32).returns.mean(axis=1)
    assert returns[CHOICE] > -0.4  # of the best action 1.5 in [-2, 2]; a clipped one has -0.5
    assert returns[MATCH] > -0.2
