"""Learning from recorded steps: baselines on bandits, data held once, the engine's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from agents.offline.awac import AWAC
from agents.offline.bc import BC
from agents.offline.cql import CQL
from agents.offline.discretecql import DiscreteCQL
from agents.offline.iql import IQL
from agents.offline.td3bc import TD3BC
from agents.value_based.dqn import DQN
from jaxrl.parts import replay
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
    size, of_states = replay.nbytes(used), replay.nbytes(states._replace(key=()))
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


@pytest.mark.parametrize("cls", [BC, IQL], ids=lambda cls: cls.name)
def test_refused_without_data(cls):
    with pytest.raises(ValueError, match="learns from recorded data only: give it --data FILE"):
        make(cls, ActionChoice(continuous=True), None)
