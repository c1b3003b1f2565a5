"""Wrappers beside plain loops in NumPy, over ends of episodes of both kinds."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

import envs_jax
import jaxrl
from agents.on_policy.ppo import PPO
from agents.value_based.dqn import DQN
from envs_jax.preprocessing import ActionRepeat, ClipReward, Flat, FrameStack, Partial
from envs_jax.wrappers import Typed
from jaxrl.parts.rollout import reset, rollout
from tests.probes import Params

KEY = jax.random.key(0)
STEPS, ENVS = 40, 3


@struct.dataclass
class State:
    time: jax.Array
    place: jax.Array
    start: jax.Array


class Counter(Environment):
    """A number that actions raise; terminates at 12, is cut after 7 steps, starts below 5.

    Seen as a tiny image of bytes, of two channels. Rewards are the number, and it is in `info`.
    """

    @property
    def default_params(self):
        return Params(jnp.int32(7), jnp.float32(0), jnp.int32(0))

    def reset_env(self, key, params):
        start = jax.random.randint(key, (), 0, 5)
        state = State(jnp.int32(0), start, start)
        return self.see(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1, place=state.place + action)
        info = {"number": 1.0 * state.place, "place": state.place}
        return self.see(state), state, 1.0 * state.place - 6, state.place >= 12, info

    def see(self, state):
        return jnp.stack([state.place, state.time]).astype(jnp.uint8) * jnp.ones((3, 3, 1), "uint8")

    def action_space(self, params=None):
        return spaces.Discrete(4)

    def observation_space(self, params):
        return spaces.Box(0, 255, (3, 3, 2), jnp.uint8)


class Loop:
    """The same in Python: what `step` returns is observation, reward, terminated, truncated."""

    def __init__(self, place):
        self.place, self.time = place, 0

    def see(self):
        return [self.place, self.time]

    def step(self, action):
        self.place, self.time = self.place + action, self.time + 1
        return self.see(), self.place - 6.0, self.place >= 12, self.time >= 7


def steps_of(env, record=()):
    """A rollout of actions drawn at random, as arrays (T, N, ...), and its environments after."""

    def act(obs, key):
        action = jax.random.randint(key, (ENVS,), 0, 4)
        return action, action, ()

    @jax.jit
    def run(key):
        actors = reset(key, env, env.default_params, ENVS, record)
        return rollout(key, env, env.default_params, actors, act, STEPS)

    actors, steps, _ = run(KEY)
    assert bool(steps.terminated.any())
    assert bool((steps.truncated & ~steps.terminated).any())
    return jax.tree.map(np.asarray, steps), actors


def pixel(obs):
    """The channels of one pixel, as all are alike."""
    assert (obs == obs[..., :1, :1, :]).all()
    return obs[..., 0, 0, :].tolist()


@pytest.fixture(scope="module")
def plain():
    return Typed(Counter(), "Counter")


@pytest.mark.parametrize(
    "resets",
    ["fresh", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pool", "cached"))],
)
def test_they_do_what_a_plain_loop_does(plain, resets):
    plain.resets = resets
    env = FrameStack(ClipReward(ActionRepeat(plain, 3), 9.0), 2)
    plain.resets = "fresh"
    assert env.reports == ("unclipped_reward",)
    steps, _ = steps_of(env, record=("unclipped_reward", "number", "place"))
    assert steps.obs.dtype == np.uint8
    assert steps.obs.shape == (STEPS, ENVS, 3, 3, 4)
    short, clipped = 0, 0
    for n in range(ENVS):
        loop = None
        for t in range(STEPS):
            if loop is None:
                loop = Loop(pixel(steps.obs[t, n])[0])
                frames = [loop.see()] * 2
            assert pixel(steps.obs[t, n]) == [*frames[0], *frames[1]]
            rewards, numbers = [], []
            for _ in range(3):
                seen, reward, terminated, truncated = loop.step(int(steps.action[t, n]))
                rewards.append(reward)
                numbers.append(loop.place)
                if terminated or truncated:
                    break
            frames = [frames[1], seen]
            assert pixel(steps.final_obs[t, n]) == [*frames[0], *frames[1]]
            assert (steps.terminated[t, n], steps.truncated[t, n]) == (terminated, truncated)
            assert steps.info["unclipped_reward"][t, n] == sum(rewards)
            assert steps.reward[t, n] == np.clip(sum(rewards), -9, 9)
            assert steps.info["number"][t, n] == sum(numbers)  # as a record adds it up
            assert steps.info["place"][t, n] == loop.place  # whole, so the last
            short += len(rewards) < 3
            clipped += abs(sum(rewards)) > 9
            loop = None if terminated or truncated else loop
    assert short  # 3 divides neither the limit of 7 nor every way to 12
    assert clipped


def test_they_are_options_of_every_suite():
    options = {"frame_stack": 2, "action_repeat": 3, "clip_reward": 0.5}
    env, params = envs_jax.make("Breakout-MinAtar", **options, sticky=0.1)
    assert env.observation_space(params).shape == (10, 10, 8)
    assert env.name == "Breakout-MinAtar"
    assert envs_jax.make("Breakout-MinAtar", **options, sticky=0.1)[0] is env
    plain = envs_jax.make("Breakout-MinAtar")[0]
    assert envs_jax.make("Breakout-MinAtar", frame_stack=1, clip_reward=0)[0] is plain
    obs, state = jax.eval_shape(env.reset, KEY, params)
    stepped = jax.eval_shape(env.step, KEY, state, jnp.int32(0), params)
    assert stepped[0].shape == obs.shape == (10, 10, 8)
    envs_jax.check(env, params)
    assert envs_jax.options("CartPole-v1")["frame_stack"] == 1


@pytest.mark.parametrize(
    ("id", "options", "line"),
    [
        ("CartPole-v1", {"frame_stack": 0}, r"CartPole-v1: frame_stack=0 is outside \[1, inf\)"),
        ("CartPole-v1", {"action_repeat": 0}, "CartPole-v1: action_repeat=0 is outside"),
        ("CartPole-v1", {"clip_reward": -1}, r"CartPole-v1: clip_reward=-1 is outside \(0, inf\)"),
        ("CartPole-v1", {"frame_stack": 1.5}, "frame_stack=1.5 is not a whole number"),
        ("FrozenLake-misc", {"frame_stack": 2}, "frame_stack=2 needs observations that are vec"),
        ("DeepSea-bsuite", {"frame_stack": 2}, "DeepSea-bsuite has a step of its own"),
    ],
)
def test_options_that_cannot_be_are_one_line(id, options, line):
    with pytest.raises(ValueError, match=line):
        envs_jax.make(id, **options)


class Parts(Counter):
    """The same, seen in parts."""

    space = spaces.Dict(
        {
            "where": spaces.Dict(
                {"place": spaces.Box(0.0, 20.0, (1,)), "image": spaces.Box(0, 255, (2, 2), "uint8")}
            ),
            "time": spaces.Discrete(8),
            "both": spaces.Tuple((spaces.Box(-1.0, 1.0, ()), spaces.Box(0.0, 9.0, (2,)))),
        }
    )

    def see(self, state):
        image = jnp.full((2, 2), 51, jnp.uint8)
        return {
            "where": {"place": 1.0 * state.place[None], "image": image},
            "time": state.time,
            "both": (jnp.float32(-0.5), jnp.arange(2.0)),
        }

    def observation_space(self, params):
        return self.space


class Guarded(Counter):
    """As PettingZoo has it: an observation, and which actions may be taken at it."""

    def see(self, state):
        mask = (jnp.arange(4) <= 2).astype(jnp.int8)
        return {"observation": super().see(state), "action_mask": mask}

    def observation_space(self, params):
        image = super().observation_space(params)
        return spaces.Dict({"observation": image, "action_mask": spaces.Box(0, 1, (4,), jnp.int8)})


def test_parts_lie_where_the_slices_say():
    env = Flat(Parts())
    params = env.default_params
    assert env.slices == {
        "where/place": slice(0, 1),
        "where/image": slice(1, 5),
        "time": slice(5, 13),
        "both/0": slice(13, 14),
        "both/1": slice(14, 16),
    }
    obs, state = env.reset(KEY, params)
    for _ in range(2):
        inner = Parts().see(state)
        parts = {name: obs[where] for name, where in env.slices.items()}
        np.testing.assert_array_equal(parts["where/place"], inner["where"]["place"])
        np.testing.assert_allclose(parts["where/image"], [0.2] * 4)
        np.testing.assert_array_equal(parts["time"], np.eye(8)[int(state.time)])
        np.testing.assert_array_equal(parts["both/0"], [-0.5])
        np.testing.assert_array_equal(parts["both/1"], [0, 1])
        obs, state, *_ = env.step(KEY, state, 1, params)
    space = env.observation_space(params)
    assert (space.shape, obs.dtype) == ((16,), jnp.float32)
    assert space.low.tolist() == [0] * 13 + [-1, 0, 0]
    assert space.high.tolist() == [20] + [1] * 13 + [9, 9]
    envs_jax.check(env, params)


def test_own_environments_of_parts_are_flattened_and_masked():
    envs_jax.register("test/parts", Parts)
    envs_jax.register("test/guarded", Guarded)
    try:
        env, params = envs_jax.make("test/parts", frame_stack=2)
        assert env.observation_space(params).shape == (32,)
        env, params = envs_jax.make("test/guarded", frame_stack=2)
        with pytest.raises(ValueError, match="action_repeat=2 would take actions that are masked"):
            envs_jax.make("test/guarded", action_repeat=2)
    finally:
        envs_jax.catalogue.REGISTERED.clear()
    obs, _ = env.reset(KEY, params)
    assert (obs.obs.shape, obs.obs.dtype) == ((3, 3, 4), jnp.uint8)
    assert obs.action_mask.tolist() == [True, True, True, False]
    assert DQN(env, params).masked


def test_what_is_flat_or_of_other_spaces_is_not_flattened():
    with pytest.raises(ValueError, match="Flat: Counter has Box"):
        Flat(Counter())
    env = Parts()
    env.space = spaces.Dict({"a": gymnasium.spaces.MultiDiscrete([2, 3])})
    with pytest.raises(ValueError, match="Flat: Parts has a MultiDiscrete as a of its observation"):
        Flat(env)


def test_bytes_stay_bytes_until_networks_take_them(plain):
    agent = DQN(plain, plain.default_params, network="cnn", buffer_size=64, learning_starts=16)
    state = jax.eval_shape(agent.init, KEY)
    assert state.source.replay.obs.dtype == state.source.replay.next_obs.dtype == jnp.uint8
    assert agent.encode(jnp.full((3, 3, 2), 255, jnp.uint8)).max() == 1


@pytest.mark.slow
def test_ppo_learns_through_all_of_them():
    env, params = envs_jax.make("CartPole-v1", frame_stack=2, action_repeat=2, clip_reward=1.0)
    sizes = {"num_envs": 16, "num_steps": 32, "num_minibatches": 4}
    run = jaxrl.train(PPO(env, params, total_steps=60_000, learning_rate=2e-3, **sizes))
    metrics = run.history.metrics
    assert metrics["episode_return"][-1] > 60  # clipped to one for every two steps
    assert metrics["episode_unclipped_reward"][-1] > 1.9 * metrics["episode_return"][-1]


def test_partial_shows_what_is_seen_and_refuses_what_is_not_there():
    inner, params = envs_jax.make("CartPole-v1")
    env = Partial(inner, (0, 2))
    obs, state = env.reset_env(KEY, params)
    whole, _ = inner.reset_env(KEY, params)
    np.testing.assert_array_equal(obs, whole[np.array([0, 2])])
    stepped = env.step_env(KEY, state, jnp.int32(1), params)[0]
    np.testing.assert_array_equal(
        stepped, inner.step_env(KEY, state, jnp.int32(1), params)[0][np.array([0, 2])]
    )
    assert env.observation_space(params).shape == (2,)
    # Its bounds follow from parameters, which are traced where an agent asks for them.
    high = jax.jit(lambda params: env.observation_space(params).high)(params)
    np.testing.assert_array_equal(high, inner.observation_space(params).high[np.array([0, 2])])
    envs_jax.check(env, params)
    for seen in [(), (4,), (-1,)]:
        with pytest.raises(ValueError, match=r"are not entries of observations \(4,\)"):
            Partial(inner, seen)
