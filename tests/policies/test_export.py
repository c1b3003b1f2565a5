"""Exported policies act as the run's own do, without what the run needed."""

import json
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jaxrl
from jaxrl import Agent, static, traced
from jaxrl.agent import Policy, memoryless
from tests import configurations
from tests.helpers import assert_same
from tests.probes import ActionChoice

KEY = jax.random.key(3)
BOTH = (True, False)


class Trained(NamedTuple):
    """What `export` takes of a run."""

    agent: Any
    state: Any
    iteration: int = 7


def learnt(agent):
    """A state like one that was trained, without training: other numbers in every array."""

    def fill(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(1)
        return jnp.asarray(np.linspace(0.1, 0.7, x.size).reshape(x.shape).astype(x.dtype))

    return Trained(agent, jax.tree.map(fill, jax.eval_shape(agent.init, KEY)))


def assert_acts_alike(run, folder):
    obs = 2 * jax.random.normal(KEY, run.agent.obs_space.shape)
    for deterministic in BOTH:
        own, exported = (
            run.agent.policy(run.state, deterministic),
            jaxrl.load(folder, deterministic),
        )
        pair = (policy.step(policy.initial(), obs, KEY) for policy in (exported, own))
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            assert_same(a, b)


def kinds():
    """Every agent in every configuration; all but a few are slow."""
    quick = ("ppo", "dqn", "sac", "bc")
    for name in configurations.NAMES:
        for i, kind in enumerate(configurations.configurations(name)):
            yield pytest.param(
                name, kind, marks=[pytest.mark.slow] if i or name not in quick else []
            )


@pytest.mark.parametrize(("name", "kind"), list(kinds()))
def test_every_agent_acts_as_before_bit_for_bit(name, kind, tmp_path):
    run = learnt(configurations.configurations(name)[kind])
    jaxrl.export(run, tmp_path)
    assert_acts_alike(run, tmp_path)
    arrays = load_file(tmp_path / "policy.safetensors")
    # ACSAC acts by its critics.
    unneeded = ["opt", "replay", "target" if name == "acsac" else "critic"]
    assert 0 < sum(x.size for x in arrays.values()) < 6000
    assert not [x for x in arrays for word in unneeded if word in x]
    assert any(name.startswith("obs_moments") for name in arrays) == getattr(
        run.agent, "normalize_observations", False
    )


# Without what the run needed --------------------------------------------------------------------


class Remembering(Agent):
    """Counts how often each action was called for, from what it has learnt; trains nothing."""

    scale: float = traced(2.0, "(0, inf)", "of what it sees")
    width: int = static(3, "[1, inf)", "of the memory")

    @property
    def steps_per_iteration(self):
        return 1

    def init(self, key):
        return {"start": jnp.zeros(self.width), "unread": jnp.zeros(1000)}

    def policy(self, state, deterministic=True):
        def step(memory, obs, key):
            noise = 0.0 if deterministic else jax.random.normal(key)
            memory = jnp.roll(memory, 1) + self.scale * obs[0] + noise
            return memory, (memory.sum() > 0).astype(jnp.int32)

        return Policy(lambda: state["start"], step)


def remembering(**changes):
    env = ActionChoice()
    return Remembering(env, env.default_params, **changes)


def test_a_memory_is_carried_and_begins_with_what_was_learnt(tmp_path):
    run = learnt(remembering(scale=1.7, width=4))
    jaxrl.export(run, tmp_path)
    assert set(load_file(tmp_path / "policy.safetensors")) == {"start"}
    for deterministic in BOTH:
        policies = run.agent.policy(run.state, deterministic), jaxrl.load(tmp_path, deterministic)
        memories = [policy.initial() for policy in policies]
        for i, value in enumerate((0.5, -3.0, 1.0)):
            key = jax.random.fold_in(KEY, i)
            steps = [
                policy.step(memory, jnp.full(1, value), key)
                for policy, memory in zip(policies, memories, strict=True)
            ]
            assert_same(*steps)
            memories = [memory for memory, _ in steps]
    with pytest.raises(TypeError, match="has a memory"):
        jaxrl.load(tmp_path)(jnp.zeros(1))
    assert "policy.initial()" in (tmp_path / "README.md").read_text()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """PPO on images, with all that an export can hold."""
    run = learnt(configurations.main_configuration("ppo"))
    folder = tmp_path_factory.mktemp("policy") / "ppo"
    episodes = np.array([1.0, 3.0], np.float32)
    evaluation = jaxrl.Evaluation(episodes, episodes.astype(int), episodes > 0, {"cost": episodes})
    about = {"seed": 3, "data": []}
    return run, jaxrl.export(run, folder, evaluation=evaluation, formats=("jax",), about=about)


ALONE = """
import sys

class Blocked:
    names = {"gymnax", "brax", "gymnasium", "mujoco", "envs_jax", "experiments", "optax"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
Blocked.names |= {"jaxrl", "agents", "flax"}
import pathlib
import jax, jax.export
import numpy as np

folder, obs = pathlib.Path(sys.argv[1]), np.array(eval(sys.argv[2]), np.float32)
keys = jax.random.split(jax.random.key(3), len(obs))
actions = []
for name in ("deterministic", "stochastic"):
    policy = jax.export.deserialize((folder / f"{name}.jaxexport").read_bytes())
    actions.append(policy.call(obs, jax.random.key_data(keys)).tolist())
Blocked.names -= {"jaxrl", "agents", "flax", "optax"}
import jaxrl

for deterministic in (True, False):
    policy = jaxrl.load(folder, deterministic)
    actions.append(jax.jit(jax.vmap(policy))(obs, keys).tolist())
print(actions)
"""


def test_it_acts_in_a_process_without_environments_and_as_stablehlo_without_jaxrl(exported):
    run, folder = exported
    obs = np.linspace(-2, 2, 6, dtype=np.float32)[:, None]
    command = [sys.executable, "-c", ALONE, str(folder), str(obs.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    keys = jax.random.split(KEY, len(obs))
    own = [
        jax.vmap(memoryless(run.agent.policy(run.state, deterministic)))(obs, keys).tolist()
        for deterministic in BOTH
    ]
    assert json.loads(done.stdout) == [*own, *own]
    assert len(set(own[1])) == 2  # so that a key that is not used would be seen


def test_what_it_is_called_with(exported):
    _, folder = exported
    policy, sampling = jaxrl.load(folder), jaxrl.load(folder, deterministic=False)
    obs = np.array([0.5])  # float64, as other environments' observations are
    assert policy(obs).dtype == policy([0.5], KEY).dtype == jnp.int32
    assert int(policy(obs)) == int(policy(obs.astype(np.float32), KEY))
    assert (policy.observation_space.shape, policy.action_space.n) == ((1,), 2)
    with pytest.raises(TypeError, match=r"samples its actions: policy\(obs, key\)"):
        sampling(obs)
    with pytest.raises(ValueError, match=r"shape \(2, 1\), and the policy takes one of \(1,\)"):
        policy(np.zeros((2, 1)))


def test_bounds_of_actions_are_kept(tmp_path):
    """Also those without an end, within which actions are only clipped."""
    run = learnt(configurations.configurations("bc")["continuous actions, data"])
    jaxrl.export(run, tmp_path)
    space, own = jaxrl.load(tmp_path).action_space, run.agent.action_space
    for name in ("low", "high"):
        ours, theirs = getattr(space, name), getattr(own, name)
        assert_same(ours, np.broadcast_to(np.asarray(theirs, np.float32), own.shape))


def test_the_description_and_the_card(exported):
    run, folder = exported
    content = json.loads((folder / "policy.json").read_text())
    assert content["evaluation"] == {
        "episodes": 2,
        "mean_return": 2.0,
        "std_return": 1.0,
        "mean_length": 2.0,
        "mean_cost": 2.0,
    }
    assert content["agent"] == "agents.on_policy.ppo:PPO"
    assert content["iteration"] == 7
    assert content["versions"]["jax"] == jax.__version__
    assert content["hyperparameters"]["learning_rate"] == run.agent.learning_rate
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "jaxrl"
    assert "reinforcement-learning" in card["tags"]
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"]["name"] == run.agent.env.name
    assert result["metrics"][0]["value"] == "2.00 +/- 1.00"
    assert "# PPO on " in text
    assert "deterministic.jaxexport" in text


# What can be wrong ------------------------------------------------------------------------------


def edited(**changes):
    def edit(folder):
        path = folder / "policy.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | changes))

    return edit


BOX = {"low": 0.0, "high": 1.0, "dtype": "float32"}


def cut(name, half):
    def edit(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(
            content[: len(content) // 2] if half else content[:-1] + b"\xff"
        )

    return edit


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            lambda folder: (folder / "policy.json").unlink(),
            "is no exported policy: policy.json: No",
        ),
        (lambda folder: (folder / "policy.safetensors").unlink(), "cannot read .*safetensors: No"),
        (cut("policy.json", half=True), "policy.json is damaged: it should hold a JSON object"),
        (cut("policy.safetensors", half=True), "policy.safetensors is damaged: "),
        (cut("policy.safetensors", half=False), "damaged: its checksum is another"),
        (edited(format=2), r"by a newer version of jaxrl \(format 2, this version reads up to 1"),
        (edited(format="1"), "policy.json: format: "),
        (edited(hyperparameters=None), "hyperparameters: .* it is damaged, or another file"),
        (
            edited(hyperparameters={"gama": 1.0}),
            "ppo has no hyper-parameter 'gama' in this version",
        ),
        (edited(hyperparameters={"gamma": 3.0}), "gamma=3.0 is outside"),
        (edited(hyperparameters={"hidden_sizes": [8]}), "params.* has shape .* and should have"),
        (edited(agent="agents.nowhere:PPO"), "there is no module agents.nowhere"),
        (edited(agent="os:path"), "agent os:path is no subclass of jaxrl.Agent"),
        (edited(agent="../x"), "agent '../x' is not written module:NAME"),
        (edited(agent="agents.off_policy.sac:SAC", hyperparameters={}), "needs continuous actions"),
        (
            edited(agent="agents.value_based.pqn:PQN", hyperparameters={}),
            "pqn has no .* in its state",
        ),
        (edited(observation={"shape": [2]} | BOX), "params.* should have"),
        (edited(observation={"shape": [2], "dtype": "float32"}), "observation: .* low and high"),
        (edited(observation={"shape": [1]} | BOX | {"low": ["x"]}), "spaces are damaged"),
        (edited(action={"n": 0, "dtype": "int32"}), "action.n: "),
        (edited(action={"n": 2, "dtype": "number"}), "its spaces are damaged"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_line(edit, line, exported, tmp_path):
    for path in exported[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path)
    with pytest.raises(ValueError, match=line) as error:
        jaxrl.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


class NeedsItsEnvironment(Remembering):
    """Begins with a number that only its own environment has."""

    def init(self, key):
        return super().init(key) | {"limit": jnp.float32(self.env.limit)}


class HasAField(Remembering):
    """Has what is no hyper-parameter."""

    target: Any = static(None, None, "a policy")

    @classmethod
    def hyperparameters(cls):
        return [h for h in super().hyperparameters() if h.name != "target"]


def test_what_cannot_be_exported_is_one_line(exported, tmp_path):
    env = ActionChoice()

    class Local(Remembering):
        pass

    def refused(run, **options):
        with pytest.raises(ValueError, match=r"^.+$") as error:
            jaxrl.export(run, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    fine = Trained(remembering(), {"start": jnp.zeros(3), "unread": jnp.zeros(1)})
    local = Local(env, env.default_params)
    assert "agent test_what" in refused(fine._replace(agent=local))
    needs = NeedsItsEnvironment(env, env.default_params)
    assert "does not act without its environment" in refused(fine._replace(agent=needs))
    field = HasAField(env, env.default_params, target=print)
    assert "its field target is no hyper-parameter" in refused(fine._replace(agent=field))
    assert "several members cannot be exported" in refused(fine._replace(iteration=np.zeros(2)))
    assert "format 'onnx' is not one of jax" in refused(fine, formats=("onnx",))
    assert "has a memory" in refused(fine, formats=("jax",))
    assert "should be of one member" in refused(fine, evaluation=jaxrl.Evaluation(*[env] * 3))
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        jaxrl.export(fine, exported[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to "):
        jaxrl.export(fine, tmp_path / "file")


def test_without_flatbuffers_the_extra_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[export\]'"):
        jaxrl.export(exported[0], tmp_path, formats=("jax",))
