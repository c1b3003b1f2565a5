"""CQL: each of its parts against a closed form, quadrature or SAC; tables against exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC, SACLearner
from agents.offline.cql import CQL
from agents.offline.discretecql import DiscreteCQL, conservatism
from jaxrl.parts import replay
from jaxrl.parts.distributions import TanhNormal
from tests.helpers import assert_close, assert_same
from tests.probes import ActionChoice, Chain
from tests.records import bandit, chain_data, chain_values, data_of, make

KEY = jax.random.key(0)


def test_the_discrete_term_pushes_softmax_down_and_the_data_up():
    q = jax.random.normal(KEY, (5, 3))
    action = jnp.array([0, 1, 2, 1, 0])
    grads = jax.grad(lambda q: conservatism(q, action).sum())(q)
    np.testing.assert_allclose(grads, jax.nn.softmax(q) - jax.nn.one_hot(action, 3), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_the_sampled_log_sum_exp_is_that_of_quadrature(size):
    """log of (1/3n) sum_j exp(Q(a_j)) / q(a_j), over all three sources, is log of the integral."""
    agent = cql(num_actions=100_000)
    mean = jnp.linspace(-0.5, 0.8, size)[None]
    q = lambda a: 2 * jnp.sin(3 * a).sum(-1) - (a**2).sum(-1)  # noqa: E731
    keys = jax.random.split(KEY, 3)
    actions = [jax.random.uniform(keys[0], (agent.num_actions, 1, size), minval=-1, maxval=1)]
    densities = [jnp.full((agent.num_actions, 1), -size * np.log(2.0))]
    for key, shift in zip(keys[1:], (0.0, 0.3), strict=True):
        dist = TanhNormal(mean + shift, jnp.full((1, size), -0.3))
        action, density = jax.vmap(dist.sample_and_log_prob)(jax.random.split(key, 100_000))
        actions.append(action)
        densities.append(density)
    actions, densities = jnp.concatenate(actions), jnp.concatenate(densities)
    found = agent.soft_maximum(jnp.stack([q(actions)] * 2), densities) - np.log(300_000)
    line = np.linspace(-1, 1, 2001)
    grid = np.stack(np.meshgrid(*[line] * size, indexing="ij"), -1)
    values = np.exp(np.asarray(q(jnp.asarray(grid)), np.float64))
    for _ in range(size):
        values = np.trapezoid(values, line, axis=-1)
    np.testing.assert_allclose(found, np.full((2, 1), np.log(values)), atol=0.01)


def cql(env=None, data=None, **changes):
    env = env or ActionChoice(continuous=True)
    return make(CQL, env, bandit(env) if data is None else data, **changes)


def batch_of(agent, key=KEY):
    return replay.draw(key, agent.data, agent.batch_size)


def test_proposals_cover_the_box_and_know_their_densities():
    agent = cql(num_actions=500)
    learner = agent.init_learner(KEY, jnp.ones(1))
    actions, log_density = agent.proposals(learner, batch_of(agent), KEY)
    assert actions.shape == (1500, 64, 1)
    uniform = np.asarray(actions[:500])
    assert -1 <= uniform.min() < -0.999
    assert 0.999 < uniform.max() <= 1
    assert abs(uniform.mean()) < 0.01
    np.testing.assert_allclose(log_density[:500], -np.log(2), rtol=1e-6)
    dist = agent.distribution(learner.actor, jnp.ones((64, 1)))
    expected = jax.vmap(dist.log_prob)(actions[500:1000])
    inside = np.abs(np.asarray(actions[500:1000, ..., 0])) < 0.99
    np.testing.assert_allclose(
        np.asarray(log_density[500:1000])[inside], np.asarray(expected)[inside], atol=1e-2
    )


def test_the_policy_is_evaluated_once_per_observation():
    """Ten samples, not ten passes: the network's products have the batch's 64 rows."""
    agent = cql(num_actions=10)
    learner = agent.init_learner(KEY, jnp.ones(1))
    batch = batch_of(agent)
    program = jax.make_jaxpr(lambda: agent.proposals(learner, batch, KEY))()
    rows = [
        eqn.outvars[0].aval.shape[0]
        for eqn in program.jaxpr.eqns
        for eqn in [eqn, *nested(eqn)]
        if eqn.primitive.name == "dot_general"
    ]
    assert rows == [64] * 4  # two layers at s, two at s'


def nested(eqn):
    for value in eqn.params.values():
        if hasattr(value, "jaxpr"):
            for inner in value.jaxpr.eqns:
                yield inner
                yield from nested(inner)


@pytest.mark.slow
def test_without_conservatism_it_is_sac():
    """The same targets, losses and steps from the same keys, up to the order of sums."""
    env = ActionChoice(continuous=True)
    data = bandit(env)
    options = {"cql_alpha": 0.0, "backup_entropy": True, "actor_learning_rate": 3e-3}
    sac, plain = make(SAC, env, data), cql(env, data, **options)
    learner, batch = sac.init_learner(KEY, jnp.ones(1)), batch_of(sac)
    expected, _ = jax.jit(sac.update)(learner, batch, KEY, 0)
    own = plain.init_learner(KEY, jnp.ones(1))
    update = jax.jit(lambda agent: agent.update(own, batch, KEY, 0)[0])
    assert_same(as_sac(own), learner)
    assert_close(as_sac(update(plain)), expected, 1e-6)
    conservative = update(plain.replace(cql_alpha=1.0))
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), conservative.critics, expected.critics)
    assert max(jax.tree.leaves(moved)) > 1e-4


def as_sac(learner):
    """What SAC learns as well."""
    return SACLearner(**{name: getattr(learner, name) for name in SACLearner._fields})


def test_gradients_do_not_flow_into_the_proposed_actions():
    """The regulariser moves critics only: the actor's step is the one of SAC."""
    agent = cql(cql_alpha=10.0)
    learner, batch = agent.init_learner(KEY, jnp.ones(1)), batch_of(agent)
    after, _ = jax.jit(agent.critic_step)(learner, batch, KEY)
    assert_same(after.actor, learner.actor)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"target_gap": 1.0}, "target_gap=1.0 has no effect without lagrange"),
        ({"backup_entropy": True, "max_target": True}, "max_target=True has no effect with backup"),
    ],
)
def test_what_has_no_effect_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        cql(**changes)


def test_variants_of_the_term():
    agent, q = cql(), jnp.array([[[1.0], [2.0], [4.0]]] * 2)
    density = jnp.array([[-0.1], [-0.2], [-0.3]])
    weights = np.exp([1.0, 2, 4]) / np.exp([1.0, 2, 4]).sum()
    exact = np.log(np.exp(np.array([1.1, 2.2, 4.3])).sum())
    np.testing.assert_allclose(agent.soft_maximum(q, density), exact, rtol=1e-6)
    rho = agent.replace(variant="rho").soft_maximum(q, density)
    np.testing.assert_allclose(rho, weights @ [1.0, 2, 4], rtol=1e-6)
    alike = agent.replace(importance_sampling=False).soft_maximum(q, density)
    np.testing.assert_allclose(alike, np.log(np.exp([1.0, 2, 4]).sum()), rtol=1e-6)
    cold = agent.replace(cql_temperature=0.01, importance_sampling=False).soft_maximum(q, density)
    np.testing.assert_allclose(cold, 4.0, rtol=1e-3)


@pytest.mark.slow
def test_the_lagrange_factor_holds_the_gap_at_its_target():
    """Uniform data: the gap is log 30 + log 2 = 4.09 for a constant Q, 4.58 for the true one."""
    env = ActionChoice(continuous=True)
    options = {"lagrange": True, "cql_alpha": 1.0, "temperature": 0.3, "learning_rate": 1e-3}
    agent = cql(env, bandit(env), steps=20_000, temperature_learning_rate=0.0, **options)
    population = jaxrl.sweep(agent, {"target_gap": [4.3, 10.0]})
    held, free = population.history.metrics["gap"][:, -30:].mean(axis=1)
    assert held == pytest.approx(4.3, abs=0.05)
    assert 4.4 < free < 4.6  # a log of a mean of 30 is a little low
    assert population.history.metrics["cql_factor"][1, -1] < 0.01


@pytest.mark.parametrize("side", [1, -1])
def test_the_factor_comes_back_from_the_edge_of_its_range(side):
    """At its largest it falls while the gap is below its target; at its smallest it rises again."""
    agent = cql(lagrange=True, target_gap=5.0, learning_rate=0.5)
    edge = jnp.float32(side * np.log(1e6))
    learner = agent.init_learner(KEY, jnp.ones(1))._replace(log_factor=edge)
    beyond = agent.factor_step(learner, jnp.full(2, 5.0 + side))
    np.testing.assert_array_equal(beyond.log_factor, edge)
    back = agent.factor_step(learner, jnp.full(2, 5.0 - side))
    assert side * (float(back.log_factor) - float(edge)) < -0.4


def test_a_factor_that_was_driven_down_comes_up_again():
    agent = cql(lagrange=True, target_gap=5.0, learning_rate=0.05)

    def move(learner, excess):
        learner = agent.factor_step(learner, 5.0 + jnp.full(2, excess))
        return learner, learner.log_factor

    excess = jnp.concatenate([-jnp.ones(50), jnp.ones(200)])
    _, path = jax.lax.scan(move, agent.init_learner(KEY, jnp.ones(1)), excess)
    assert path[49] < -1.5
    assert path[-1] > path[49] + 1


@pytest.mark.slow
def test_the_first_steps_may_clone():
    env = ActionChoice(continuous=True)
    data = data_of(env, np.ones((500, 1)), np.full((500, 1), -1.0, np.float32), np.ones(500))
    agent = cql(env, data, steps=400, bc_steps=400, actor_learning_rate=1e-2)
    run = jaxrl.train(agent)
    act = agent.policy(run.state)
    assert float(act(jnp.ones(1), KEY)[0]) == pytest.approx(-1.0, abs=0.1)


# Tables -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_conservative_values_are_lower_bounds_and_plain_ones_are_not():
    """E_pi[Q] of the greedy policy is below its true value everywhere; DQN's is right here."""
    env = Chain()
    data = chain_data(env)
    options = {"hidden_sizes": (), "target_period": 20, "learning_rate": 1e-2, "huber": False}
    agent = make(DiscreteCQL, env, data, steps=6000, cql_alpha=0.5, **options)
    q = np.asarray(learnt_q(agent))
    greedy = np.eye(2)[q.argmax(1)]
    true = (greedy * chain_values(greedy)).sum(1)
    assert (q.max(1) < true - 0.01).all()
    plain = np.asarray(learnt_q(agent.replace(cql_alpha=0.0)))
    np.testing.assert_allclose(plain.max(1), chain_values(np.eye(2)[[1] * 5])[:, 1], atol=0.03)


def learnt_q(agent):
    run = jaxrl.train(agent)
    return agent.q_values(run.state.learner.params, jnp.eye(agent.data.obs.shape[1]))


@pytest.mark.slow
def test_the_fixed_point_of_one_state():
    """Q(a) = r(a) - alpha (softmax(Q)(a) / beta(a) - 1) where the behaviour beta is above 0."""
    env = ActionChoice()
    rng = np.random.default_rng(0)
    action = (rng.random(20_000) < 0.75).astype(int)
    data = data_of(env, np.ones((20_000, 1)), action, np.where(action == 1, 1.0, -1.0))
    options = {"hidden_sizes": (), "huber": False, "learning_rate": 3e-3, "batch_size": 512}
    q = np.asarray(learnt_q(make(DiscreteCQL, env, data, steps=4000, cql_alpha=0.5, **options)))[0]
    beta = np.array([1 - action.mean(), action.mean()])
    softmax = np.exp(q) / np.exp(q).sum()
    np.testing.assert_allclose(q, [-1.0, 1.0] - 0.5 * (softmax / beta - 1), atol=0.05)
