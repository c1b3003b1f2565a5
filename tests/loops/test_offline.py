"""Learning from recorded steps: baselines on bandits, data held once, the engine's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from agents.offline import awac, iql
from agents.offline.awac import AWAC
from agents.offline.bc import BC
from agents.offline.cql import CQL
from agents.offline.discretecql import DiscreteCQL
from agents.offline.fqe import FQE
from agents.offline.iql import IQL
from agents.offline.td3bc import TD3BC
from agents.value_based.dqn import DQN
from jaxrl.parts.trees import nbytes
from jaxrl.training.members import stack_agents
from jaxrl.training.placement import Placement
from jaxrl.training.programs import chunk
from tests.helpers import assert_close
from tests.probes import ActionChoice, ConstantReward, Match
from tests.records import bandit, data_of, make

KEY = jax.random.key(0)
CONTINUOUS = [SAC, CQL, BC, TD3BC, IQL, AWAC]


# Baselines --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cls", CONTINUOUS, ids=lambda cls: cls.name)
def test_a_random_bandit_is_improved_upon(cls):
    """From uniform actions in [-2, 2]: cloning stays at their mean, 0, and all others find 1.5."""
    env = ActionChoice(continuous=True)
    fixed = {"temperature": 0.05, "temperature_learning_rate": 0.0, "cql_alpha": 0.05}
    fixed |= {"actor_learning_rate": 3e-3, "alpha": 10.0, "beta": 10.0}
    if cls is AWAC:
        fixed["temperature"] = 0.1
    agent = make(cls, env, bandit(env), steps=3000, **fixed)
    run = jaxrl.train(agent)
    mean = float(jaxrl.evaluate(agent, run.state, KEY, episodes=8).returns.mean())
    if cls is BC:
        assert mean == pytest.approx(-1.5, abs=0.2)
    else:
        assert mean > -0.45


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [True, False])
def test_cloning_the_best_part(continuous):
    """All of it: the mean action, or the commoner one; the best tenth: the best action."""
    env = ActionChoice(continuous=continuous)
    data = bandit(env, low=-2.0, high=2.0)
    if not continuous:
        action = (np.random.default_rng(0).random(2000) < 0.3).astype(int)
        data = data_of(env, np.ones((2000, 1)), action, np.where(action == 1, 1.0, -1.0))
    population = jaxrl.sweep(make(BC, env, data, steps=1000), {"best": [1.0, 0.1]})
    everything, best = population.evaluate(episodes=8).returns.mean(axis=1)
    assert best > (-0.2 if continuous else 0.9)
    assert everything < (-1.2 if continuous else -0.9)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DQN, DiscreteCQL, IQL, AWAC], ids=lambda cls: cls.name)
def test_discrete_agents_learn_from_records(cls):
    env = ActionChoice()
    run = jaxrl.train(make(cls, env, bandit(env), steps=1000, target_period=20))
    assert jaxrl.evaluate(run.agent, run.state, KEY, episodes=8).returns.mean() == 1.0


# The engine -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_population_holds_its_data_once():
    env = ConstantReward(continuous=True)
    data = bandit(env, size=200_000)
    agent = make(CQL, env, data, hidden_sizes=(8,), batch_size=16, num_updates=2)
    agents = stack_agents([agent] * 16)
    assert agents.data is data
    assert agents.learning_rate.shape == (16,)
    placement = Placement.of_members(1)
    states = jax.eval_shape(jax.vmap(agent.init), jax.random.split(KEY, 16))
    states = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states._replace(key=()))
    states = states._replace(key=jax.random.split(KEY, 16))
    placed = placement.put_agents(agents), placement.put_states(agents, states)
    args = *placed, np.int32(0), np.int32(1)
    memory = chunk.lower(*args, mesh=placement.mesh, length=1).compile().memory_analysis()
    used = data._replace(truncated=())
    size, of_states = nbytes(used), nbytes(states._replace(key=()))
    assert size > 3 * of_states
    assert size <= memory.argument_size_in_bytes < 1.2 * size + of_states
    assert memory.temp_size_in_bytes < 0.5 * size


@pytest.mark.slow
def test_a_sweep_of_records_equals_single_runs():
    env = ActionChoice(continuous=True)
    agent = make(TD3BC, env, bandit(env), steps=200, num_updates=20)
    population = jaxrl.sweep(agent, {"learning_rate": [1e-3, 1e-4]}, seeds=2, evaluations=2)
    alone = jaxrl.train(agent.replace(learning_rate=1e-4), seed=1, evaluations=2)
    assert_close(population[3].state, alone.state, 1e-4)
    assert alone.history.evaluations["returns"].shape == (2, 64)
    np.testing.assert_array_equal(alone.history.env_steps, np.arange(1, 11) * 20)


def test_observations_are_normalised_by_the_data():
    env = Match(continuous=True)
    data = bandit(env)
    agent = make(BC, env, data._replace(obs=5 + 3 * data.obs), normalize_observations=True)
    moments = agent.init(KEY).obs_moments
    np.testing.assert_allclose(moments.mean, 5 + 3 * np.asarray(data.obs).mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, 9 * np.asarray(data.obs).var(0), rtol=1e-4)
    obs = np.asarray(agent.data.obs)
    expected = (1000 - obs.mean()) / (obs.std() + 1e-3)  # far out, and not clipped
    np.testing.assert_allclose(agent.normalize(moments, jnp.full(1, 1000.0)), expected, rtol=1e-4)


# Rewards ----------------------------------------------------------------------------------------


def test_rewards_are_shifted_then_scaled_to_the_span_of_returns():
    """(r + shift) x 1000 / (highest - lowest return) is what `update` is given."""
    env = ActionChoice(continuous=True)
    data = bandit(env)
    reward = np.asarray(data.reward, np.float64)
    np.testing.assert_allclose(data.return_range, [reward.min(), reward.max()])
    shifted = make(IQL, env, data, reward_shift=-1.0)
    np.testing.assert_allclose(shifted.prepare(data.reward), reward - 1, rtol=1e-6)
    both = shifted.replace(span_returns=True)
    expected = (reward - 1) * 1000 / (reward.max() - reward.min())
    np.testing.assert_allclose(both.prepare(data.reward), expected, rtol=1e-5)

    class Seeing(IQL):
        def update(self, learner, batch, key, n):
            return learner, {"reward": batch.reward.mean()}

    agent = make(Seeing, env, data._replace(reward=jnp.ones(2000)), steps=100, reward_shift=-3.0)
    _, metrics = jax.jit(agent.step)(agent.init(KEY), 0)
    assert metrics["reward"] == pytest.approx(-2.0)


def test_what_does_not_fit_of_rewards_is_refused():
    env = ActionChoice(continuous=True)
    data = bandit(env)
    alike = data._replace(return_range=jnp.full(2, 7.0))
    with pytest.raises(ValueError, match="returns differ, but all are 7"):
        make(IQL, env, alike, span_returns=True)
    with pytest.raises(ValueError, match="span_returns=True has no effect without recorded data"):
        SAC(env, env.default_params, span_returns=True)
    for cls in (BC, FQE):  # which do not learn from them, or not from others
        assert not {"reward_shift", "span_returns"} & {h.name for h in cls.hyperparameters()}
    with pytest.raises(ValueError, match=r"reward_shift=1\.0 has no effect on bc"):
        BC(env, env.default_params, data=data, reward_shift=1.0)


# IQL and AWAC -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [IQL, AWAC], ids=lambda cls: cls.name)
def test_weights_have_a_finite_bound(cls):
    env = ActionChoice(continuous=True)
    with pytest.raises(ValueError, match="max_weight=inf is outside"):
        make(cls, env, bandit(env), max_weight=float("inf"))


def test_the_largest_weight_does_not_depend_on_advantages_with_softmax_weights():
    env = ActionChoice(continuous=True)
    with pytest.raises(ValueError, match=r"max_weight=5\.0 has no effect with softmax_weights"):
        make(AWAC, env, bandit(env), softmax_weights=True, max_weight=5.0)


@pytest.mark.parametrize("module", [iql, awac], ids=lambda module: module.__name__)
def test_the_deviation_comes_back_from_the_edge_of_its_range(module):
    """It is a parameter of its own: behind a clip in the loss it would have no gradient."""
    env = ActionChoice(continuous=True)
    cls = {iql: IQL, awac: AWAC}[module]
    agent = make(cls, env, bandit(env))
    learner = agent.init_learner(KEY, jnp.ones(1))
    beyond = {**learner.actor, "log_std": jnp.array([-9.0])}
    at_edge = module.bounded(beyond)
    np.testing.assert_array_equal(at_edge["log_std"], [-5.0])
    loss = lambda actor: -agent.distribution(actor, jnp.ones((4, 1))).log_prob(0.5).mean()  # noqa: E731
    assert float(jax.grad(loss)(at_edge)["log_std"][0]) < -1.0


def test_the_step_size_of_the_actor_of_iql_decays_to_nothing():
    """By half a cosine over all gradient steps: step n has (1 + cos(pi n / N)) / 2 of it."""
    env = ActionChoice(continuous=True)
    agent = make(IQL, env, bandit(env), steps=400, num_updates=100, learning_rate=0.1)
    params, gradient = jnp.zeros(2), jnp.ones(2)
    for n, share in ((0, 1.0), (100, 0.5 + 0.5**1.5), (200, 0.5), (400, 0.0)):
        optimizer = agent.actor_optimizer(jnp.int32(n))
        step, _ = optimizer.update(gradient, optimizer.init(params))
        np.testing.assert_allclose(step, -0.1 * share, atol=1e-6)
    optimizer = agent.replace(cosine_decay=False).actor_optimizer(400)
    step, _ = optimizer.update(gradient, optimizer.init(params))
    np.testing.assert_allclose(step, -0.1, atol=1e-6)


def test_iql_drops_out_in_the_loss_of_its_actor_alone():
    env = ActionChoice(continuous=True)
    agent = make(IQL, env, bandit(env), actor_dropout=0.5)
    actor = agent.init_learner(KEY, jnp.ones(1)).actor
    head = actor["net"]["params"]["Dense_1"]
    actor["net"]["params"]["Dense_1"] = head | {"kernel": jnp.ones_like(head["kernel"])}
    obs = jnp.ones((4, 1))
    acting = agent.distribution(actor, obs).mean
    plain = agent.replace(actor_dropout=0.0).distribution(actor, obs).mean
    np.testing.assert_array_equal(acting, plain)
    one, other = (agent.distribution(actor, obs, jax.random.key(i)).mean for i in (1, 2))
    assert (one != acting).any()
    assert (one != other).any()


@pytest.mark.parametrize("cls", [BC, IQL], ids=lambda cls: cls.name)
def test_refused_without_data(cls):
    with pytest.raises(ValueError, match="learns from recorded data only: give it --data FILE"):
        make(cls, ActionChoice(continuous=True), None)
