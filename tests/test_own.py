"""Agents and environments of the user's own, by name, from a folder that holds nothing else."""

import json
import sys

import pytest

import agents
import envs_jax
from envs_jax.catalogue import REGISTERED
from experiments.command.cli import main

MODULE = """
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from agents.on_policy.ppo import PPO


class Mine(PPO):
    \"\"\"PPO of my own.\"\"\"


@struct.dataclass
class State:
    position: jax.Array
    time: jax.Array


@struct.dataclass
class Params:
    goal: float = 3.0


class Walk(Environment):
    def __init__(self, limit=8):
        self.limit = limit

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        return jnp.zeros(1), State(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        state = State(state.position + action, state.time + 1)
        reached = state.position >= params.goal
        return state.position[None], state, jnp.where(reached, 1.0, 0.0), reached, {}

    def is_truncated(self, state, params):
        return state.time >= self.limit

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (1,))

    def action_space(self, params=None):
        return spaces.Discrete(2)


class Wide(Walk):
    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (2,))


class Changing(Walk):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, state.replace(time=state.time * 1.0), *rest


class Losing(Walk):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, state.position, *rest

    def is_truncated(self, state, params):
        return False


class Vector(Walk):
    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = super().step_env(key, state, action, params)
        return obs, state, reward[None], *rest


class Four(Walk):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action, params)[:4]


def make_short(limit=4):
    return Walk(limit)


def make_nothing():
    return 3


class Torso(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, obs):
        return nn.relu(nn.Dense(self.width)(obs))


def twice(obs):
    return 2 * obs


number = 3
"""
BROKEN = "import a_library_that_is_not_there"
TINY = [
    "num_envs=2",
    "num_steps=8",
    "num_minibatches=1",
    "num_epochs=1",
    "--steps",
    "32",
    "--episodes",
    "2",
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with modules `mine` and `broken`, entered; nothing of it is left behind."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x])
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)
    REGISTERED.clear()


def test_they_are_trained_evaluated_and_resumed_by_name(mine, capsys):
    words = ["train", "mine:Mine", "mine:make_short", "env.limit=6", "env.goal=2", *TINY]
    words += ["network=mine:Torso"]
    assert main(words) == 0
    (run,) = (mine / "runs").iterdir()
    assert run.name.startswith("mine-Mine-mine-make_short-")
    config = json.loads((run / "config.json").read_text())
    assert (config["agent"], config["env"]) == ("mine:Mine", "mine:make_short")
    assert config["env_options"]["limit"] == 6
    assert config["env_params"] == {"goal": 2.0}
    assert config["hyperparameters"]["network"] == "mine:Torso"
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    assert main(["train", "--resume", str(run), "--steps", "64"]) == 0


def test_they_are_listed(mine, capsys):
    assert main(["list", "mine:Mine"]) == 0
    assert capsys.readouterr().out.startswith("mine:Mine: PPO of my own.\n")
    assert main(["list", "mine:Walk"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine:Walk: observation (1,), action Discrete(2), time limit its own")
    assert "goal" in out
    assert "limit" in out


def test_the_same_name_gives_the_same_environment(mine):
    """So that its programs are compiled once."""
    one, params = envs_jax.make("mine:Walk", limit=5)
    assert envs_jax.make("mine:Walk", limit=5)[0] is one
    assert envs_jax.make("mine:Walk")[0] is not one
    assert one.name == "mine:Walk"
    assert params.goal.dtype == "float32"


def test_a_registered_environment_is_made_by_its_id(mine):
    from jaxrl.imports import load

    walk, short = load("mine:Walk", "environment"), load("mine:make_short", "environment")
    envs_jax.register("mine/walk", walk)
    envs_jax.register("mine/walk", walk)  # as when a cell of a notebook is run again
    env, _ = envs_jax.make("mine/walk", limit=2)
    assert (env.name, env._env.limit) == ("mine/walk", 2)
    assert "mine/walk" in envs_jax.list_envs()
    for id, make in (("mine/walk", short), ("CartPole-v1", walk)):
        with pytest.raises(ValueError, match="is there already"):
            envs_jax.register(id, make)
    with pytest.raises(ValueError, match="is a int: give a class or function"):
        envs_jax.register("mine/number", 3)


def test_installed_packages_declare_theirs(mine, capsys):
    info = mine / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[jaxrl.agents]\nmyppo = mine:Mine\n[jaxrl.envs]\nWalk-v0 = mine:Walk\n"
    (info / "entry_points.txt").write_text(points)
    sys.path.append(str(mine))
    assert agents.get("myppo").__name__ == "Mine"
    assert envs_jax.make("Walk-v0")[0].name == "Walk-v0"
    assert main(["list", "agents"]) == 0
    assert "PPO of my own." in capsys.readouterr().out
    assert main(["list", "envs"]) == 0
    assert "Walk-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("mine:Mind CartPole-v1", "agent mine:Mind: mine has no Mind; did you mean Mine"),
        ("mine:Walk CartPole-v1", "agent mine:Walk is no subclass of jaxrl.Agent"),
        ("mime:Mine CartPole-v1", "agent mime:Mine: there is no module mime, neither installed"),
        ("mine: CartPole-v1", "agent 'mine:' is not written module:NAME"),
        ("ppo mine:Wolk", "environment mine:Wolk: mine has no Wolk; did you mean Walk"),
        ("ppo mine:number", "environment mine:number is a int: give a class or function"),
        ("ppo mine:make_nothing", "environment mine:make_nothing gives a int: it has to give"),
        (
            "ppo mine:Wide",
            "gives observations of shape (1,) by a reset, and its observation_space says (2,)",
        ),
        ("ppo mine:Changing", "gives state.time as int32[] by a reset and as float32[] by a step"),
        ("ppo mine:Losing", "mine:Losing gives a state of other fields by a step than by a reset"),
        ("ppo mine:Vector", "mine:Vector gives a reward of shape (1,): it is one number"),
        (
            "ppo mine:Four",
            "mine:Four fails in step_env(key, state, action, params): ValueError: not",
        ),
        ("ppo mine:Walk network=mine:Torse", "network mine:Torse: mine has no Torse; did you mean"),
        ("ppo mine:Walk network=mine:number", "network=mine:number is neither a flax module nor"),
        ("ppo mine:Walk network=mine:Walk", "network=mine:Walk is neither a flax module nor a"),
        ("ppo mine:Walk env.limits=3", "unknown option 'limits'; did you mean limit?"),
    ],
)
def test_what_is_not_there_is_one_line(mine, words, line, capsys):
    assert main(["train", *words.split(), *TINY]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert line in only


def test_a_fault_of_the_module_itself_is_shown_whole(mine):
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        envs_jax.make("broken:Walk")
