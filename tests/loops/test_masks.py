"""Masked actions: never taken, never bootstrapped from, and nothing of them is learnt."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

import jaxrl
from agents.off_policy.discretesac import DiscreteSAC
from agents.off_policy.sac import SAC
from agents.offline.bc import BC
from agents.on_policy.a2c import A2C
from agents.on_policy.aisac import AISAC
from agents.on_policy.ppo import PPO
from agents.on_policy.recurrentppo import RecurrentPPO
from agents.on_policy.reppo import RePPO
from agents.on_policy.secondorder import SecondOrder
from agents.on_policy.trpo import TRPO
from agents.value_based.abs import ABS
from agents.value_based.dqn import DQN
from agents.value_based.pqn import PQN
from jaxrl import Masked, masks
from jaxrl.parts.distributions import Categorical, epsilon_greedy, epsilon_greedy_log_prob
from jaxrl.parts.losses import q_targets
from tests.configurations import ENVS, dataset
from tests.probes import Params

KEY = jax.random.key(0)
ACTIONS = 4


@struct.dataclass
class State:
    time: jax.Array
    place: jax.Array


class Doors(Environment):
    """Three rooms with four doors, of which two are open in each; through 3 pays, if it is open.

    A closed door would pay most, and is counted in `info`. Rooms follow each other until the time
    limit; the last one of the time limit is not the first of the next episode.
    """

    open = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]], bool)

    @property
    def default_params(self):
        return Params(jnp.int32(5), jnp.float32(0), jnp.int32(0))

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jax.random.randint(key, (), 0, 3))
        return self.see(state), state

    def step_env(self, key, state, action, params):
        closed = ~jnp.asarray(self.open)[state.place, action]
        reward = jnp.where(closed, 100.0, jnp.where(action == 3, 1.0, 0.0))
        state = State(state.time + 1, (state.place + 1) % 3)
        return self.see(state), state, reward, jnp.bool_(False), {"closed": 1.0 * closed}

    def see(self, state):
        return Masked(jax.nn.one_hot(state.place, 3), jnp.asarray(self.open)[state.place])

    def action_space(self, params=None):
        return spaces.Discrete(ACTIONS)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (3,))


ROOMS = [Masked(jnp.eye(3)[i], jnp.asarray(Doors.open[i])) for i in range(3)]
SIZES = {
    PPO: {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "normalize_observations": True},
    A2C: {"num_envs": 8, "num_steps": 4},
    RePPO: {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "normalize_observations": True},
    AISAC: {"num_envs": 8, "num_steps": 8, "critic_learning_rate": 0.01},
    RecurrentPPO: {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "core_size": 8},
    TRPO: {"num_envs": 8, "num_steps": 16, "max_kl": 0.05},
    SecondOrder: {"num_envs": 8, "num_steps": 16, "max_kl": 0.05},
    PQN: {"num_envs": 8, "num_steps": 16, "num_minibatches": 16},
    ABS: {"num_envs": 8, "min_steps": 8, "max_steps": 16, "num_minibatches": 16},
    DQN: {"num_envs": 8, "learning_starts": 64, "buffer_size": 512, "double": True},
    DiscreteSAC: {
        **{"num_envs": 8, "learning_starts": 64, "buffer_size": 512},
        **{"temperature": 0.05, "temperature_learning_rate": 0.0, "tau": 0.05},
    },
}


@pytest.mark.parametrize(
    "cls",
    [
        *(PPO, DQN),
        *(
            pytest.param(cls, marks=pytest.mark.slow)
            for cls in (A2C, RePPO, AISAC, RecurrentPPO, TRPO, SecondOrder, PQN, ABS, DiscreteSAC)
        ),
    ],
)
def test_closed_doors_are_never_taken(cls):
    env = Doors()
    fast = {"learning_rate": 0.01, "gamma": 0.5, "hidden_sizes": (16,), "total_steps": 4096}
    agent = cls(env, env.default_params, **SIZES[cls], **fast, record=("closed",))
    run = jaxrl.train(agent)
    closed = run.history.metrics["episode_closed"]
    assert np.nansum(closed) == 0
    test = jaxrl.evaluate(agent, run.state, KEY, episodes=64)
    assert float(test.info["closed"].sum()) == 0
    assert float(test.returns.min()) >= 1  # the door that pays is found

    @jax.jit
    def sampled(room):
        policy, actions = agent.policy(run.state, deterministic=False), jnp.arange(ACTIONS)
        log_prob = jax.vmap(agent.log_prob, in_axes=(None, None, 0))(run.state, room, actions)
        act = jax.vmap(lambda key: policy.step(policy.initial(), room, key)[1])
        return act(jax.random.split(KEY, 200)), log_prob

    for room in ROOMS:
        actions, log_probs = sampled(room)
        assert set(np.unique(actions)) <= set(np.flatnonzero(room.action_mask))
        if log_probs is None:
            continue  # of a policy with memory
        np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-5)
        assert not np.exp(log_probs)[~np.asarray(room.action_mask)].any()


def test_a_masked_distribution_is_the_one_over_the_actions_left():
    logits = jnp.array([0.3, -2.0, 1.5, 0.7])
    for open_doors in itertools.product([False, True], repeat=4):
        mask = np.array(open_doors)
        left = np.flatnonzero(mask) if mask.any() else np.arange(4)
        weights = np.exp(np.asarray(logits, np.float64)[left])
        expected = np.zeros(4)
        expected[left] = weights / weights.sum()
        dist = Categorical(masks.masked(logits, jnp.asarray(mask)))
        log_probs = np.array([dist.log_prob(jnp.array(a)) for a in range(4)])
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-5)
        entropy = -(expected[left] * np.log(expected[left])).sum()
        np.testing.assert_allclose(dist.entropy(), entropy, rtol=1e-5, atol=1e-7)
        assert int(dist.mode()) == left[weights.argmax()]


def test_no_gradient_goes_to_masked_actions():
    mask = jnp.array([True, False, True, False])

    def entropy_and_log_prob(logits):
        dist = Categorical(masks.masked(logits, mask))
        return dist.entropy() + dist.log_prob(jnp.array(2))

    grads = np.asarray(jax.grad(entropy_and_log_prob)(jnp.array([0.3, -2.0, 1.5, 0.7])))
    assert (grads[[1, 3]] == 0).all()
    assert (grads[[0, 2]] != 0).all()
    assert np.isfinite(grads).all()


def test_exploration_is_uniform_over_the_actions_left():
    q, mask = jnp.array([5.0, 9.0, 2.0, 1.0]), jnp.array([True, False, True, True])
    q = masks.masked(q, mask)
    draw = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, q, 0.6, mask)))
    counts = np.bincount(draw(jax.random.split(KEY, 20_000)), minlength=4) / 20_000
    expected = [0.4 + 0.2, 0.0, 0.2, 0.2]
    np.testing.assert_allclose(counts, expected, atol=0.015)
    log_probs = [epsilon_greedy_log_prob(q, jnp.int32(a), 0.6, mask) for a in range(4)]
    np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_targets_are_maxima_over_the_actions_left(double):
    """Q of the closed doors is the largest, in the target network and in the online one."""
    env = Doors()
    agent = DQN(env, env.default_params, hidden_sizes=(), double=double)
    # Without hidden layers Q(room, action) is a weight: any table can be written down.
    online = np.array([[1, 4, 99, 99], [99, 2, 99, 3], [5, 99, 1, 99]], np.float32)
    target = np.array([[7, 2, 99, 99], [99, 4, 99, 8], [3, 99, 6, 99]], np.float32)

    def params(table):
        return {"params": {"Dense_0": {"kernel": jnp.asarray(table), "bias": jnp.zeros(4)}}}

    rooms = jax.tree.map(lambda *x: jnp.stack(x), *ROOMS)
    next_q = agent.q_values(params(target), rooms)
    chooser = agent.q_values(params(online), rooms) if double else next_q
    got = q_targets(jnp.zeros(3), jnp.zeros(3, bool), next_q, chooser, 1.0)
    np.testing.assert_array_equal(got, [2, 8, 3] if double else [7, 8, 6])


def test_the_lambda_returns_bootstrap_from_the_actions_left():
    env = Doors()
    sizes = {"num_envs": 2, "num_steps": 7, "num_minibatches": 2}
    agent = PQN(env, env.default_params, **sizes, q_lambda=0.0, gamma=0.5, hidden_sizes=())
    state = jax.jit(agent.init)(KEY)
    # Closed doors have the largest values; open ones that of their number.
    table = np.where(Doors.open, np.arange(4.0), 99.0).astype(np.float32)
    params = {"params": {"Dense_0": {"kernel": jnp.asarray(table), "bias": jnp.zeros(4)}}}
    _, batch, _ = jax.jit(lambda actors: agent.collect(params, actors, KEY, 0.0, 7))(state.actors)
    best = np.where(Doors.open, np.arange(4), -1).max(axis=1)  # 1, 3, 2
    room = np.asarray(batch.obs.obs).argmax(-1)
    reward = (np.asarray(batch.action) == 3).astype(float)
    # Across the time limit at 5 too, which bootstraps from the room that it cut.
    np.testing.assert_allclose(batch.target, reward + 0.5 * best[(room + 1) % 3])


def test_a_replay_keeps_the_masks():
    env = Doors()
    agent = DQN(env, env.default_params, **SIZES[DQN], total_steps=64, hidden_sizes=())
    state = jax.jit(agent.init)(KEY)
    memory = state.source.replay
    assert (memory.obs.action_mask.dtype, memory.obs.action_mask.shape) == (bool, (64, 8, ACTIONS))

    def first_door(obs, key):
        return jnp.argmax(obs.action_mask, axis=-1)

    source, collected = agent.source(), state.source
    advance = jax.jit(lambda state, t: source.advance(state, KEY, t, first_door)[0])
    for t in range(4):
        collected = advance(collected, jnp.int32(t))
    batch = source.draw(collected, KEY, jnp.int32(3), 50)
    for obs in (batch.obs, batch.next_obs):
        np.testing.assert_array_equal(obs.action_mask, Doors.open[np.asarray(obs.obs.argmax(-1))])
    led_to = (np.asarray(batch.obs.obs.argmax(-1)) + 1) % 3
    np.testing.assert_array_equal(batch.next_obs.obs.argmax(-1), led_to)


class Few(Doors):
    """Masks of three actions, where there are four."""

    open = Doors.open[:, :3]

    def step_env(self, key, state, action, params):
        return self.see(state), state, 0.0, False, {}


class Continuous(Few):
    def action_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("cls", "env", "line"),
    [
        (SAC, Continuous(), "sac: Continuous masks actions that are continuous: only discrete"),
        (PPO, Few(), r"ppo: Few gives an action_mask bool\[3\] by a reset: it is bool\[4\]"),
        (BC, Doors(), "bc: Doors masks actions, and bc would take any"),
    ],
)
def test_what_cannot_be_masked_is_one_line(cls, env, line):
    with pytest.raises(ValueError, match=line):
        cls(env, env.default_params)


def test_recorded_data_holds_no_masks():
    env = Doors()
    data = dataset(ENVS["discrete actions"])
    with pytest.raises(ValueError, match="recorded data says nothing of the actions that Doors"):
        DQN(env, env.default_params, data=data)
