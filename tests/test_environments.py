"""What is asked of an environment: the line for each thing that does not fit, and one trace."""

import re

import gymnasium
import jax
import jax.numpy as jnp
import pytest
from gymnax.environments import spaces as gymnax_spaces

import envs_jax
from agents.on_policy.ppo import PPO
from tests.probes import Probe


class Spaced(Probe):
    """A probe with spaces of any kind."""

    def __init__(self, action=None, observation=None):
        super().__init__()
        self.spaces = action, observation

    def action_space(self, params):
        return self.spaces[0] or super().action_space(params)

    def observation_space(self, params):
        return self.spaces[1] or super().observation_space(params)


@pytest.mark.parametrize(
    "space",
    [
        gymnax_spaces.Dict({"a": gymnax_spaces.Discrete(2)}),
        gymnax_spaces.Tuple((gymnax_spaces.Discrete(2),)),
        gymnasium.spaces.MultiBinary(3),
        gymnasium.spaces.MultiDiscrete([2, 3]),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("kind", ["action", "observation"])
def test_other_spaces_are_refused_in_one_line(space, kind):
    env = Spaced(**{kind: space})
    message = f"ppo: Spaced has a {type(space).__name__} as its {kind} space; agents take"
    with pytest.raises(ValueError, match=message) as error:
        PPO(env, env.default_params)
    assert "\n" not in str(error.value)


class Old:
    """The interface before gymnax 1.0: five values, and no final observation."""

    default_params = Probe().default_params

    def reset(self, key, params):
        return Probe().reset_env(key, params)

    def step(self, key, state, action, params):
        return Probe().step_env(key, state, action, params)

    def action_space(self, params):
        return gymnax_spaces.Discrete(2)

    def observation_space(self, params):
        return gymnax_spaces.Box(-10.0, 10.0, (1,))


class New(Old):
    """Of no library's class, and all that agents need; what comes back can be changed."""

    def __init__(self, **changes):
        self.changes = changes

    def step(self, key, state, action, params):
        obs, state, reward, done, info = super().step(key, state, action, params)
        info = {"final_observation": obs, "fuel": jnp.ones(()), "seen": obs}
        values = {"obs": obs, "state": state, "reward": reward, "terminated": done}
        values |= {"truncated": done, "info": info}
        return tuple((values | self.changes).values())


class Unhashable(New):
    __hash__ = None


class Branching(New):
    def step(self, key, state, action, params):
        if action > 0:  # Python cannot know while the program is traced
            return super().step(key, state, action, params)


class Alone(New):
    def reset(self, key, params):
        return super().reset(key, params)[0]


class Pair(New):
    def reset(self, key, params):
        obs, state = super().reset(key, params)
        return {"a": obs, "b": obs}, state


class Needy(New):
    def action_space(self):
        return gymnax_spaces.Discrete(2)


WRONG = [
    (Old(), "gives 5 values by step; gymnax 1.0's (before 1.0 they were others) are obs, state, "),
    (New(info={}), "gives no info['final_observation'], the observation before any reset"),
    (New(info=3), "gives no info['final_observation']"),
    (New(obs=jnp.ones(2)), "gives observations of shape (2,) by a step, and its observation_space"),
    (New(obs=jnp.ones(1, int)), "gives observation as float32[1] by a reset and as int32[1] by a"),
    (New(state=jnp.ones(1)), "gives a state of other fields by a step than by a reset"),
    (New(reward=jnp.ones(1)), "gives a reward of shape (1,): it is one number, of shape ()"),
    (New(terminated=jnp.ones(1, bool)), "gives a terminated of shape (1,): it is one number"),
    (New(info={"final_observation": jnp.ones(2)}), "of shape (2,) by final_observation, and its"),
    (Unhashable(), "has no hash, by which its compiled programs are found again"),
    (
        Branching(),
        "fails in step(key, state, action, params): TracerBoolConversionError: ",
    ),
    (Alone(), "gives one value by reset; gymnax 1.0's are obs, state"),
    (Pair(), "gives a dict as observation by a reset, not one array"),
    (Needy(), "fails in action_space(params): TypeError: Needy.action_space() takes 1 positional"),
    (gymnasium.make("CartPole-v1").unwrapped, "has no method action_space, but a Discrete of that"),
    (object(), "has no method reset: it needs the interface of gymnax 1.0"),
    (Probe, "Probe is a class: pass what Probe(...) makes"),
    ("CartPole-v1", "'CartPole-v1' is a name: pass the environment itself, and its parameters"),
    ((Probe(), None), "tuple of several things is no environment: pass it and its parameters"),
]


@pytest.mark.parametrize(("env", "line"), WRONG, ids=[line[:30] for _, line in WRONG])
def test_what_is_wrong_is_one_line(env, line):
    params = Probe().default_params
    for prefix, refused in (("environment ", envs_jax.check), ("ppo: ", PPO)):
        with pytest.raises(ValueError, match=re.escape(line)) as error:
            refused(env, params)
        assert str(error.value).startswith(prefix)
        assert "\n" not in str(error.value)


def test_the_cause_shows_where_in_the_environment():
    with pytest.raises(ValueError, match="fails in step") as error:
        envs_jax.check(Branching(), Probe().default_params)
    assert isinstance(error.value.__cause__, jax.errors.TracerBoolConversionError)


def test_parameters_are_numbers():
    line = "environment New has a str among its parameters, which are numbers"
    with pytest.raises(ValueError, match=line):
        envs_jax.check(New(), {"map": "large"})


def test_any_class_with_these_methods_will_do():
    env = New()
    envs_jax.check(env, env.default_params)
    assert PPO(env, env.default_params, record=("fuel",)).record == ("fuel",)
    with pytest.raises(ValueError, match="'seen' is not a number in the info of New; it has fuel"):
        PPO(env, env.default_params, record=("seen",))


def test_an_environment_is_traced_once():
    env = Probe()
    agent = PPO(env, env.default_params)
    assert env.traces == 1
    agent.replace(gamma=0.5, env_params=env.default_params.replace(bonus=2.0))
    envs_jax.check(env, env.default_params)
    assert env.traces == 1
