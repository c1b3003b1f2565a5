"""DQN, SAC, mixture and bridge: known answers on probes, the loop, the engine's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import envs_jax
import jaxrl
from agents.off_policy.mixturesac import MixtureSAC
from agents.off_policy.sac import SAC
from agents.off_policy.softgac import SoftGAC
from agents.value_based.dqn import DQN
from jaxrl.parts import replay
from jaxrl.parts.trees import nbytes
from jaxrl.spaces import from_box
from jaxrl.training.members import stack
from jaxrl.training.placement import Placement
from jaxrl.training.programs import chunk
from tests.helpers import assert_close, assert_same, primitives
from tests.probes import (
    CHOICE,
    GAMMA,
    MATCH,
    ActionChoice,
    Chain,
    ConstantReward,
    Match,
    ObsValue,
    any_of,
    known_answers,
    settings,
)

KEY = jax.random.key(0)
SMALL = {
    "num_envs": 8,
    "num_updates": 2,
    "batch_size": 64,
    "buffer_size": 4096,
    "learning_starts": 256,
    "learning_rate": 3e-3,
    "hidden_sizes": (16,),
    "gamma": GAMMA,
}
CONTINUOUS = {
    SAC: {},
    MixtureSAC: {"num_components": 2},
    SoftGAC: {"critic": "twin", "bridge_width": 16, "bridge_steps": 3},
}


def make(cls, env, iterations=1000, **changes):
    options = SMALL | CONTINUOUS.get(cls, {}) | changes
    return cls(env, env.default_params, total_steps=8 * iterations, **options)


# DQN --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dqn_reaches_the_known_answers():
    rows = known_answers()
    agent = make(DQN, any_of(rows), iterations=2500, target_period=20)
    population = jaxrl.sweep(agent, settings(rows))
    for i, row in enumerate(rows):
        run = population[i]
        actual = run.agent.q_values(run.state.learner.params, jnp.array(row.observations)[:, None])
        np.testing.assert_allclose(actual, row.q, rtol=0.03, atol=0.1, err_msg=str(i))
    run = population[MATCH]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_a_table_reaches_the_optimal_q(double):
    env = Chain()
    options = {"hidden_sizes": (), "epsilon_end": 1.0, "target_period": 10, "learning_rate": 1e-2}
    agent = make(DQN, env, iterations=1500, double=double, lean_buffer=double, **options)
    run = jaxrl.train(agent)
    optimal = np.zeros((env.size, 2))
    for _ in range(200):  # value iteration
        best = optimal.max(1)
        optimal[:, 0] = GAMMA * best[np.maximum(np.arange(env.size) - 1, 0)]
        optimal[:, 1] = np.append(GAMMA * best[1:], 1.0)
    actual = run.agent.q_values(run.state.learner.params, jnp.eye(env.size))
    np.testing.assert_allclose(actual, optimal, atol=0.03)


def test_target_network_moves_when_it_should():
    agent = make(DQN, ConstantReward(), target_period=3, tau=0.5)
    learner = agent.init_learner(KEY, jnp.ones(1))
    batch = replay.Batch(
        jnp.ones((4, 1)),
        jnp.zeros(4, int),
        jnp.ones(4),
        jnp.ones(4, bool),
        jnp.ones((4, 1)),
        jnp.ones(4, bool),
    )
    update = jax.jit(agent.update)
    for n in range(2):
        after, _ = update(learner, batch, KEY, n)
        assert_same(after.target_params, learner.target_params)
        learner = after
    after, _ = update(learner, batch, KEY, 2)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, learner.target_params, after.params)
    assert_close(after.target_params, halfway, 1e-6)


# Continuous actions -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cls", [SAC, MixtureSAC, SoftGAC], ids=lambda cls: cls.name)
def test_reaches_the_known_answers(cls):
    """With little weight on the entropy the values are nearly those of the rewards alone.

    With none, the policy would run into the edge of the box before Q is known, and stay there.
    """
    rows = known_answers(continuous=True)
    options = {"temperature": 0.05, "temperature_learning_rate": 0.0, "tau": 0.05}
    agent = make(cls, any_of(rows), iterations=2500, **options)
    population = jaxrl.sweep(agent, settings(rows))
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
    # Of the best action 1.5 in [-2, 2]; a clipped one has -0.5. By machine between -0.1 and -0.32.
    assert returns[CHOICE] > -0.4
    if cls is not SoftGAC:  # see the next test
        assert returns[MATCH] > -0.2


@pytest.mark.slow
def test_a_bridge_follows_its_observation():
    """`Match`, seen as two numbers: LayerNorm of [obs, z] keeps but the order of one and z."""

    class Seen(Match):
        def see(self, state):
            return jnp.stack([state.sign, -state.sign])

        def observation_space(self, params):
            return spaces.Box(-10.0, 10.0, (2,))

    options = {"temperature": 0.05, "temperature_learning_rate": 0.0, "tau": 0.05}
    run = jaxrl.train(make(SoftGAC, Seen(continuous=True), iterations=2500, **options))
    assert jaxrl.evaluate(run.agent, run.state, KEY, episodes=32).returns.mean() > -0.2


@pytest.mark.slow
def test_crossq_critic_learns_a_reward():
    env = ObsValue(continuous=True)
    agent = make(SoftGAC, env, iterations=1500, critic="crossq", value_bound=5.0)
    run = jaxrl.train(agent.replace(temperature=1e-3, temperature_learning_rate=0.0))
    obs = jnp.array([[-1.0], [1.0]])
    q = run.agent.q_values(run.state.learner.critics, obs, jnp.zeros((2, 1))).mean(0)
    np.testing.assert_allclose(q, [-1, 1], atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "changes", "metric", "target"),
    [
        (SAC, {"target_entropy": -0.5}, "entropy", -0.5),
        (SoftGAC, {"cost_target": 0.4}, "penalty", 0.4 * 3),  # of three steps in one dimension
    ],
)
def test_temperature_holds_entropy_or_cost_at_its_target(cls, changes, metric, target):
    env = ActionChoice(continuous=True)
    options = {"temperature": 0.1, "temperature_learning_rate": 1e-2} | changes
    run = jaxrl.train(make(cls, env, iterations=3000, **options))
    newest = run.history.metrics[metric][-500:].mean()
    assert newest == pytest.approx(target, abs=0.1)


@pytest.mark.slow
def test_sac_learns_the_boltzmann_policy():
    """Reward -|a - 1.5| in [-2, 2] and temperature 0.5: entropy and value by quadrature."""
    options = {"temperature": 0.5, "temperature_learning_rate": 0.0, "tau": 0.05}
    agent = make(MixtureSAC, ActionChoice(continuous=True), iterations=3000, **options)
    run = jaxrl.train(agent)
    a = np.linspace(-1, 1, 20_001)
    density = np.exp(-np.abs(2 * a - 1.5) / 0.5)
    density /= np.trapezoid(density, a)
    entropy = -np.trapezoid(density * np.log(density), a)
    assert run.history.metrics["entropy"][-500:].mean() == pytest.approx(entropy, abs=0.1)


# The loop ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_actions_cover_the_box_and_stop_when_learning_starts():
    env = ConstantReward(continuous=True)
    agent = make(SAC, env, iterations=64, learning_starts=256, learning_rate=1e-9)
    run = jaxrl.train(agent)
    action = np.asarray(run.state.source.replay.action)[:64].reshape(64, -1)
    random, acted = action[:32], action[32:]
    assert -1 <= random.min() < -0.95
    assert 0.95 < random.max() <= 1
    assert abs(random.std() - 1 / np.sqrt(3)) < 0.06  # uniform
    assert acted.std() > 0.6  # tanh of a standard normal: 0.63
    assert np.isnan(run.history.metrics["critic_loss"][:31]).all()
    assert np.isfinite(run.history.metrics["critic_loss"][31:]).all()


@pytest.mark.slow
def test_observations_are_stored_raw_and_learnt_from_normalised():
    run = jaxrl.train(make(SAC, ObsValue(continuous=True), normalize_observations=True))
    stored = np.asarray(run.state.source.replay.obs)[:500]
    assert set(np.unique(stored)) == {-1.0, 1.0}
    assert run.state.obs_moments.seen == 8000


def test_a_population_keeps_its_branches():
    agent = make(SoftGAC, ConstantReward(continuous=True))
    stacked = stack([agent, agent])
    states = jax.eval_shape(jax.vmap(agent.init), jax.random.split(KEY, 2))
    program = jax.make_jaxpr(
        lambda agents, states, t: jax.vmap(lambda a, s: a.step(s, t))(agents, states)
    )(stacked, states, jnp.int32(0))
    # Acting or random, learning or not, the actor's turn or not.
    assert primitives(program.jaxpr).count("cond") == 3


@pytest.mark.slow
def test_the_replay_of_64_members_is_held_once():
    """It is written where it lies, and the announced memory has little else."""
    env, env_params = envs_jax.make("Pendulum-v1")
    agent = SAC(env, env_params, **SMALL | {"total_steps": 512, "buffer_size": 20_000})
    lines = []
    population = jaxrl.sweep(agent, seeds=64, announce=lines.append)
    assert np.isfinite(population.history.metrics["critic_loss"][:, -1]).all()

    states = population.batches[0][1].state
    each = 20_000 * (3 * 4 * 2 + 4 + 4 + 1)
    assert nbytes(states.source.replay) == 64 * each
    number, unit = lines[1].removeprefix("memory: ").split()[:2]
    assert unit == "KiB"
    assert each / 1024 < float(number) < 1.3 * each / 1024
    placement, agents = Placement.of_members(64), stack([agent] * 64)
    mesh = placement.mesh
    args = agents, placement.put_states(agents, states), np.int32(0), np.int32(1)
    memory = chunk.lower(*args, mesh=mesh, length=1).compile().memory_analysis()
    per_device = 64 // mesh.size
    assert memory.alias_size_in_bytes >= each * per_device
    # What it needs beside its arguments is far from a second copy.
    assert memory.temp_size_in_bytes < 0.2 * each * per_device


@pytest.mark.parametrize(
    ("cls", "changes", "line"),
    [
        (SAC, {"buffer_size": 8}, "buffer_size=8 does not hold two iterations"),
        (SAC, {"learning_starts": 9000}, "learning_starts=9000 is more than total_steps=8000"),
        (DQN, {}, "needs discrete actions"),
    ],
)
def test_refused(cls, changes, line):
    with pytest.raises(ValueError, match=line):
        make(cls, ConstantReward(continuous=True), **changes)
