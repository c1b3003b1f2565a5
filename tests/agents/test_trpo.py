"""TRPO: Fisher products, the natural gradient, the line search, and its promise at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrl
from agents.on_policy.trpo import TRPO, Trial, line_search
from jaxrl.loops.on_policy import Batch
from jaxrl.parts.distributions import Categorical
from tests.probes import CHOICE, GAMMA, MATCH, ActionChoice, Match, any_of, known_answers, settings

KEY = jax.random.key(0)


def trpo(env, iterations=100, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "num_epochs": 4,
        "num_minibatches": 2,
        "learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
        "max_kl": 0.02,
        "damping": 0.01,
    } | changes
    return TRPO(env, env.default_params, total_steps=64 * iterations, **options)


def rollout_of(agent, size=32):
    """Random observations and advantages; actions and their log-probability from the policy."""
    params = agent.init_params(KEY, jnp.ones(1))

    # Away from the start, where its last layer is nearly 0.
    def moved(x):
        return x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    params["policy"] = jax.tree.map(moved, params["policy"])
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(size, 1)), jnp.float32)
    dist = agent.distribution(params, obs)
    action = dist.sample(KEY)
    numbers = [jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(3)]
    return params, Batch(obs, action, dist.log_prob(action), *numbers)


def fisher_matrix(agent, policy, obs):
    """The mean outer product of d log pi: over states, and by quadrature over actions."""
    flat, unravel = ravel_pytree(policy)

    def dist(flat, obs):
        return agent.distribution({"policy": unravel(flat)}, obs)

    if agent.discrete:
        actions, weights = jnp.arange(2), jax.nn.softmax(dist(flat, obs).logits)
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)  # exact: polynomials of degree 4
        at = dist(flat, obs)
        actions = at.mean[None] + jnp.exp(at.log_std) * nodes[:, None, None]
        weights = jnp.broadcast_to(weights / weights.sum(), (len(obs), 12))

    def scores(action):
        return jax.jacobian(lambda flat: dist(flat, obs).log_prob(action))(flat)

    if agent.discrete:
        actions = jnp.broadcast_to(actions[:, None], (2, len(obs)))
    rows = jax.vmap(scores)(actions)  # (actions, states, parameters)
    return jnp.einsum("as,asi,asj->ij", weights.T, rows, rows) / len(obs)


@pytest.mark.parametrize("continuous", [False, True])
def test_fisher_products_are_those_of_the_explicit_matrix(continuous):
    """The covariance of the score, which no line of the agent computes."""
    with jax.enable_x64(True):
        agent = trpo(ActionChoice(continuous), damping=0.0, hidden_sizes=(3,))
        params, batch = rollout_of(agent)
        policy, obs = jax.tree.map(lambda x: x.astype("float64"), (params["policy"], batch.obs))
        direction = jax.tree.map(lambda x: jnp.sin(1 + jnp.arange(x.size)).reshape(x.shape), policy)
        actual = jax.jit(lambda v: agent.fisher_product(policy, obs, KEY)(v))(direction)
        matrix = jax.jit(lambda p, o: fisher_matrix(agent, p, o))(policy, obs)
        expected = matrix @ ravel_pytree(direction)[0]
        assert np.abs(expected).max() > 0.01
        # Networks compute in float32, whatever the mode.
        np.testing.assert_allclose(ravel_pytree(actual)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_share_of_the_rollout_gives_nearly_the_same_products():
    agent = trpo(ActionChoice(), fisher_share=0.25)
    params, batch = rollout_of(agent, 2048)
    direction = jax.tree.map(jnp.ones_like, params["policy"])
    part, whole = (
        ravel_pytree(a.fisher_product(params["policy"], batch.obs, KEY)(direction))[0]
        for a in (agent, agent.replace(fisher_share=1.0))
    )
    assert np.any(part != whole)
    np.testing.assert_allclose(part, whole, rtol=0.2, atol=0.02)


def test_the_step_is_along_the_natural_gradient_and_as_long_as_allowed():
    """Of a softmax in its logits F = diag(p) - p p^T, and F^+ g is the centred advantage."""

    class Bandit(TRPO):
        def distribution(self, params, obs):
            return Categorical(jnp.broadcast_to(params["policy"], (*obs.shape[:-1], 3)))

    agent = Bandit(
        ActionChoice(), ActionChoice().default_params, damping=1e-6, max_kl=1e-4, num_minibatches=1
    )
    logits = jnp.array([0.2, -0.4, 0.1])
    # Each action as often as its probability says, so that means are exact.
    counts = np.round(np.asarray(jax.nn.softmax(logits)) * 6000).astype(int)
    probs = counts / counts.sum()
    logits = jnp.log(jnp.asarray(probs, jnp.float32))
    action = jnp.asarray(np.repeat(np.arange(3), counts))
    advantage = jnp.array([1.0, -1.0, 3.0])[action]
    log_prob = jax.nn.log_softmax(logits)[action]
    zeros = jnp.zeros(len(action))
    batch = Batch(zeros[:, None], action, log_prob, zeros, advantage, zeros)
    new, metrics = jax.jit(agent.improve_policy)(logits, batch, KEY)
    wanted = np.array([1.0, -1.0, 3.0])
    wanted -= probs @ wanted
    wanted *= np.sqrt(2e-4 / (probs @ wanted**2))  # x^T F x / 2 = max_kl
    step = np.asarray(new - logits)
    steps = step - probs @ step
    length = 0.8 ** float(metrics["backtracks"])
    np.testing.assert_allclose(steps, wanted * length, rtol=2e-3, atol=1e-5)
    assert 0.5e-4 < metrics["kl"] <= 1e-4


def test_line_search_takes_the_first_that_holds_both_promises():
    def trial(step):
        return Trial(step, step, step, (step <= 0.3) & (step > 0.1))

    stay = Trial(jnp.float32(-1), jnp.float32(0), jnp.float32(0), jnp.bool_(False))
    search = jax.jit(lambda length, n: line_search(trial, length, 0.5, n, stay))
    found, backtracks = search(jnp.float32(1), 10)
    assert (found.policy, backtracks, found.accepted) == (0.25, 2, True)
    found, backtracks = search(jnp.float32(0.2), 10)
    assert (found.policy, backtracks) == (np.float32(0.2), 0)
    found, backtracks = search(jnp.float32(1), 2)
    assert (found.policy, found.kl, backtracks) == (-1, 0, 2)
    found, backtracks = search(jnp.float32(np.nan), 3)
    assert (found.policy, backtracks) == (-1, 3)


# Whole runs -------------------------------------------------------------------------------------

PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, all in one program."""
    return jaxrl.sweep(trpo(any_of(PROBES), iterations=150), settings(PROBES))


def test_no_update_of_a_run_is_beyond_its_divergence(population):
    history = population.history.metrics
    kl = np.asarray(history["kl"])
    assert np.all(kl <= np.float32(0.02))
    assert (kl > 0.01).any()
    assert np.all((np.asarray(history["surrogate_gain"]) > 0) == (kl > 0))


def test_the_divergence_is_what_another_computation_gives():
    agent = trpo(ActionChoice(continuous=True))
    params, batch = rollout_of(agent, 64)
    new, metrics = jax.jit(agent.improve_policy)(params["policy"], batch, KEY)
    old_dist, new_dist = (
        agent.distribution({"policy": p}, batch.obs) for p in (params["policy"], new)
    )
    samples = jax.vmap(old_dist.sample)(jax.random.split(KEY, 4000))
    ratios = old_dist.log_prob(samples) - new_dist.log_prob(samples)
    assert 0 < metrics["kl"] <= 0.02
    np.testing.assert_allclose(ratios.mean(), metrics["kl"], rtol=0.1)


def test_nothing_to_gain_leaves_the_policy_as_it_was():
    agent = trpo(ActionChoice())
    params, batch = rollout_of(agent)
    batch = batch._replace(advantage=jnp.zeros(32))
    new, metrics = jax.jit(agent.improve_policy)(params["policy"], batch, KEY)
    assert (metrics["kl"], metrics["surrogate_gain"]) == (0, 0)
    for before, after in zip(jax.tree.leaves(params["policy"]), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("i", [CHOICE, MATCH])
def test_policy_finds_the_best_action(population, i):
    run = population[i]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))


@pytest.mark.slow
def test_values_reach_the_known_answer_and_continuous_actions_are_learnt(population):
    for i, probe in enumerate(PROBES):
        run = population[i]
        actual = run.agent.value(run.state.params, jnp.asarray(probe.observations)[:, None])
        np.testing.assert_allclose(actual, np.max(probe.q, axis=1), rtol=0.05, atol=0.1)
    run = jaxrl.train(trpo(Match(continuous=True), iterations=300), seed=0)
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_allclose(best.returns, np.zeros(32), atol=0.1)
