"""What every agent of the registry promises. A new one is under all of it by being registered.

An agent is looked at in every *kind* of configuration that it accepts: discrete or continuous
actions or images, environments or recorded data or both. The fast tests only trace; the slow ones
compile a few tiny programs per agent. `TINY` gives sizes for the names that agents share; an agent
with sizes of its own needs a line in `OWN`.
"""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from jax.interpreters import partial_eval

import agents
import jaxrl
from envs_jax.datasets import Recording
from jaxrl import Agent
from jaxrl.agent import Hyperparameter, Policy, memoryless, static, traced
from jaxrl.training.members import stack_agents
from tests.helpers import Toy, assert_close, assert_same, primitives
from tests.probes import Probe, SignedLimit

KEY = jax.random.key(0)
TINY = {
    "num_envs": 2,
    "num_steps": 4,
    "num_epochs": 2,
    "num_minibatches": 2,
    "num_updates": 2,
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "hidden_sizes": (4,),
    "normalize_observations": True,
    "normalize_rewards": True,
}
OWN: dict[str, dict[str, Any]] = {
    "abs": {"min_steps": 4, "max_steps": 8},
    "mixturesac": {"num_components": 2},
    "softgac": {"bridge_width": 4, "bridge_steps": 2},
}
ITERATIONS = 6
# What only says how long a run is.
LENGTH = ("total_steps",)


class Image(Probe):
    """One-step episodes, seen as an image."""

    def see(self, state):
        return state.sign * jnp.ones((4, 4, 2))

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (4, 4, 2))


ENVS = {
    "discrete actions": SignedLimit(limit=3),
    "continuous actions": SignedLimit(continuous=True, limit=3),
    "images": Image(),
}
SOURCES = ("environments", "data", "both")
KINDS = [(env, source) for env in ENVS for source in SOURCES]
NAMES = tuple(agents.AGENTS)


def dataset(env):
    """Sixty random steps, of which some end an episode."""
    rng = np.random.default_rng(0)
    params = env.default_params
    obs = rng.normal(size=(2, 60, *env.observation_space(params).shape)).astype(np.float32)
    space = env.action_space(params)
    discrete = hasattr(space, "n")
    action = rng.integers(0, space.n, 60) if discrete else rng.uniform(-1.9, 1.9, (60, 1))
    flags = rng.random((2, 60)) < 0.1
    recording = Recording(
        obs[0],
        action.astype(np.int32 if discrete else np.float32),
        rng.normal(size=60).astype(np.float32),
        flags[0],
        flags[1] & ~flags[0],
        obs[1],
    )
    return recording.dataset(env, params)


def make(name: str, env: str, source: str) -> Agent:
    """The agent in one kind of configuration; ValueError where it does not accept that."""
    cls = agents.get(name)
    declared = {h.name for h in cls.hyperparameters()}
    fields = {k: v for k, v in (TINY | OWN.get(name, {})).items() if k in declared}
    if env == "images":
        if "network" not in declared:
            raise ValueError("no networks for images")
        fields["network"] = "cnn"
    if source != "environments":
        if "data" not in {f.name for f in dataclasses.fields(cls)}:
            raise ValueError("does not learn from data")
        if source == "both" and "data_share" not in declared:
            raise ValueError("does not collect")
        fields["data"] = dataset(ENVS[env])
        if source == "both":
            fields["data_share"] = 0.5
        else:  # what only collects has no effect
            unused = cls(ENVS[env], ENVS[env].default_params, data=fields["data"]).unused()
            fields = {k: v for k, v in fields.items() if k not in unused}
    agent = cls(ENVS[env], ENVS[env].default_params, **fields)
    return agent.replace(total_steps=agent.steps_per_iteration * ITERATIONS)


@cache
def configurations(name: str) -> dict[str, Agent]:
    """All kinds that an agent accepts."""
    accepted = {}
    for env, source in KINDS:
        try:
            accepted[f"{env}, {source}"] = make(name, env, source)
        except ValueError as error:
            refusal = str(error)
    assert accepted, refusal
    return accepted


def main_configuration(name: str) -> Agent:
    """The first kind that it accepts: with environments, if it collects."""
    return next(iter(configurations(name).values()))


# One trace of everything an agent does ----------------------------------------------------------


class Trace(NamedTuple):
    """What init, two steps and both policies are as a program.

    Attributes:
        text: the program and its constants: equal for equal programs.
        used: traced hyper-parameters that reach an output.
        read: all that were looked at.
        state, after: shapes of the state before and after a step.
        metrics, actions: of the step, and of the policies.
        policies: what `policy` returned.
    """

    text: str
    used: set[str]
    read: set[str]
    state: Any
    after: Any
    metrics: dict[str, Any]
    actions: Any
    policies: list[Any]


def trace(agent: Agent) -> Trace:
    read: set[str] = set()
    policies: list[Any] = []
    cls = type(agent)
    names = {h.name for h in cls.hyperparameters()}
    plain = cls.__getattribute__

    def reading(self, name):
        if name in names:
            read.add(name)
        return plain(self, name)

    def everything(agent, key, t, obs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cls, "__getattribute__", reading)
            state = agent.init(key)
            after, metrics = agent.step(state, t)
            policies.extend(agent.policy(after, mode) for mode in (True, False))
            actions = [policy.step(policy.initial(), obs, key)[1] for policy in policies]
        return state, after, metrics, actions

    obs = jax.ShapeDtypeStruct(agent.obs_shape, jnp.float32)
    args = (agent, KEY, jax.ShapeDtypeStruct((), jnp.int32), obs)
    program, shapes = jax.make_jaxpr(everything, return_shape=True)(*args)
    outputs = [True] * len(program.jaxpr.outvars)
    # Nothing is kept for its own sake: only what leads to an output.
    _, used = partial_eval.dce_jaxpr(program.jaxpr, outputs)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(agent)]
    reached = {path.lstrip(".") for path, is_used in zip(paths, used, strict=False) if is_used}
    constants = [str(np.asarray(x).tolist()) for x in program.consts if hasattr(x, "dtype")]
    text = "\n".join([str(program), *constants])
    return Trace(text, reached & names, read, *shapes, policies)


@cache
def traces(name: str) -> dict[str, Trace]:
    return {kind: trace(agent) for kind, agent in configurations(name).items()}


def each(name: str) -> list[tuple[str, Agent, Trace]]:
    """An agent's configurations and their programs."""
    return [(kind, agent, traces(name)[kind]) for kind, agent in configurations(name).items()]


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_reaches_the_program_or_is_refused(name):
    for kind, agent, program in each(name):
        without_effect = dead(agent, program)
        assert not without_effect, f"{kind}: {without_effect}"
        # Static ones may be read and not matter; a traced one that is used does.
        disowned = program.used & agent.unused().keys()
        assert not disowned, f"{kind}: {disowned} are used, though unused() names them"


def dead(agent: Agent, program: Trace) -> set[str]:
    """Hyper-parameters that do not reach the program and that `unused` does not name."""
    return {
        h.name
        for h in type(agent).hyperparameters()
        if h.name not in (program.used if h.kind == "traced" else program.read)
        and h.name not in agent.unused()
        and h.name not in LENGTH
    }


def test_what_has_no_effect_is_found():
    """That the test above can fail: two faults of an agent, and what is in order."""

    class Faulty(Toy):
        ignored: float = traced(0.5, "[0, 1]", "used, but what it gives goes nowhere")
        unread: int = static(3, "[1, 9]", "never looked at")
        idle: float = traced(1.0, "[0, 1]", "unused, as unused() says")

        def step(self, state, t):
            _ = jnp.sin(self.ignored * state.weight)
            state, metrics = super().step(state, t)
            return state, metrics

        def policy(self, state, deterministic=True):
            return memoryless(super().policy(state, deterministic))

        def unused(self):
            return {"idle": "in this test"}

    env = ENVS["discrete actions"]
    agent = Faulty(env, env.default_params)
    assert dead(agent, trace(agent)) == {"ignored", "unread"}


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_effect_is_refused(name):
    for kind, agent, _ in each(name):
        declared = {h.name for h in type(agent).hyperparameters()}
        for h in Agent.hyperparameters.__func__(type(agent)):
            # Inherited fields that an agent does not list have no effect either.
            if h.name in agent.unused() or h.name not in declared:
                refused = [changed(agent, h, value) for value in other_values(h, agent)]
                assert any("has no effect" in str(x) for x in refused), (kind, h.name, refused)
                assert not any(isinstance(x, Agent) for x in refused), (kind, h.name)


def other_values(h: Hyperparameter, agent: Agent) -> list[Any]:
    """Values to try instead of an agent's own."""
    value = getattr(agent, h.name)
    if h.type is bool:
        return [not value]
    if h.type is tuple:
        return [(*value, 3), value[1:]]
    if h.type is str:
        assert isinstance(h.valid, tuple)
        return [choice for choice in h.valid if choice != value]
    if h.type is int:
        return [v for v in (2 * value, value + 1, value // 2, 1, 2) if v != value]
    finite = value if math.isfinite(value) else 10.0
    return [v for v in (0.9 * finite, 1.1 * finite, 0.5 * finite, 0.5, 0.05, 1.5) if v != value]


def changed(agent: Agent, h: Hyperparameter, value: Any) -> Agent | ValueError:
    """The agent with another value, or why it refused it."""
    try:
        return agent.replace(**{h.name: value})
    except ValueError as refusal:
        return refusal


@pytest.mark.parametrize("name", NAMES)
def test_the_state_keeps_its_shapes(name):
    """A step's result is what the next step takes, to the dtype; a scan carries it."""
    for _, _, program in each(name):
        chex.assert_trees_all_equal_shapes_and_dtypes(program.state, program.after)
        assert not any(x.weak_type for x in jax.tree.leaves((program.state, program.after)))


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_named_scalars(name):
    usual = {"episode_return", "episode_length", "episodes"}
    page = Path(agents.__file__).parent / "README.md"
    documented = page.read_text() if page.exists() else None
    for kind, agent, program in each(name):
        chex.assert_shape(list(program.metrics.values()), ())
        if agent.actors(program.state) is not None:
            assert usual <= program.metrics.keys(), kind
        if documented is not None:
            missing = [m for m in program.metrics if f"`{m}`" not in documented]
            assert not missing, f"agents/README.md does not say what they are: {missing}"


@pytest.mark.parametrize("name", NAMES)
def test_policies_act_within_the_space(name):
    for _, agent, program in each(name):
        assert all(isinstance(policy, Policy) for policy in program.policies)
        chex.assert_shape(program.actions, agent.action_space.shape)
        for action in program.actions:
            assert jnp.issubdtype(action.dtype, jnp.integer) == agent.discrete


@pytest.mark.parametrize("name", NAMES)
def test_branches_survive_vmap(name):
    """t is never batched, and what follows from it alone stays a branch, not a select."""
    agent = main_configuration(name)

    def step(agent, state, t):
        return agent.step(state, t)

    state = traces(name)[next(iter(configurations(name)))].state
    alone = jax.make_jaxpr(step)(agent, state, jnp.int32(0))
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state)
    together = jax.make_jaxpr(jax.vmap(step, (agent.axes(), 0, None)))(
        stack_agents([agent, agent]), states, jnp.int32(0)
    )
    branches = [primitives(program.jaxpr).count("cond") for program in (alone, together)]
    assert branches[0] == branches[1]


# Slow: one hyper-parameter away -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_choice_changes_the_program_and_leaves_nothing_dead(name):
    """Static ones, exactly: the program of every other value differs; there, all is reached too.

    Each is changed in the first kind of configuration in which it has an effect.
    """
    faults = []
    for h in type(main_configuration(name)).hyperparameters():
        if h.kind == "static" and h.name not in LENGTH:
            faults += faults_of(h, name)
    assert not faults, "\n".join(faults)


def faults_of(h: Hyperparameter, name: str) -> list[str]:
    """What is wrong with the programs of other values of a static hyper-parameter."""
    faults: list[str] = []
    for kind, agent, program in each(name):
        if h.name in agent.unused():
            continue
        others = [changed(agent, h, value) for value in other_values(h, agent)]
        others = [other for other in others if isinstance(other, Agent)]
        same = []
        for other in others:
            other_program = trace(other)
            change = f"{kind}: {h.name}={getattr(other, h.name)!r}"
            if lost := dead(other, other_program):
                faults.append(f"{change}: {lost} without effect")
            if other_program.text == program.text:
                same.append(f"{change} is the same program")
            elif h.type is not str:
                break  # all choices of a word, but of a number the first that differs
        if others:
            # A number may be rounded to what it was; a word may not.
            return faults + (same if h.type is str or len(same) == len(others) else [])
    in_effect = any(h.name not in agent.unused() for _, agent, _ in each(name))
    return [f"{h.name}: no other value was accepted"] if in_effect else []


# Slow: tiny runs --------------------------------------------------------------------------------


class Runs(NamedTuple):
    """An agent, its `fused` run as one compiled program, and what that gave."""

    agent: Agent
    fused: Any
    state: Any
    metrics: dict[str, Any]


@pytest.fixture(scope="module", params=NAMES)
def runs(request):
    agent = main_configuration(request.param)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def fused(agent, key):
        return jaxrl.fused(agent, key)

    return Runs(agent, fused, *fused(agent, jax.random.key(2)))


def other_settings(agent: Agent) -> Agent:
    """Another value of every traced hyper-parameter that has an effect."""
    changes = {}
    for h in type(agent).hyperparameters():
        if h.kind == "traced" and h.name not in agent.unused():
            values = [v for v in other_values(h, agent) if isinstance(changed(agent, h, v), Agent)]
            changes[h.name] = values[0]
    return agent.replace(**changes)


@pytest.mark.slow
def test_nothing_is_traced_again_for_other_values(runs):
    """chex raises at a second trace; that the numbers move shows that the values were read."""
    other = other_settings(runs.agent)
    state, _ = runs.fused(other, jax.random.key(3))
    assert jax.tree.structure(other.learned(state)) == jax.tree.structure(
        runs.agent.learned(runs.state)
    )
    with pytest.raises(AssertionError):
        assert_same(other.learned(state), runs.agent.learned(runs.state))


@pytest.mark.slow
def test_learnt_numbers_and_metrics_are_finite(runs):
    chex.assert_tree_all_finite(runs.agent.learned(runs.state))
    taken = runs.agent.env_steps(runs.state)
    last = ITERATIONS - 1 if taken is None else int(taken) // runs.agent.steps_per_iteration - 1
    newest = {k: v[: last + 1] for k, v in runs.metrics.items()}
    never = [k for k, v in newest.items() if not np.isfinite(v).any()]
    assert not never, f"never a number: {never}"
    assert not any(np.isinf(v).any() for v in newest.values())


@pytest.mark.slow
def test_members_are_single_runs(runs):
    settings = [runs.agent, other_settings(runs.agent)]
    together = jax.jit(jax.vmap(jaxrl.fused, in_axes=(runs.agent.axes(), None)))
    results = together(stack_agents(settings), jax.random.key(2))
    for i, agent in enumerate(settings):
        alone = runs.fused(agent, jax.random.key(2))
        member = jax.tree.map(lambda x, i=i: x[i], results)
        assert_close(agent.learned(member[0]), agent.learned(alone[0]), 1e-3)
        assert_close(member[1], alone[1], 1e-3)


@pytest.mark.slow
def test_chunks_are_the_fused_run_and_resuming_is_exact(runs):
    whole = jaxrl.train(runs.agent, 2)
    assert_close(whole.state, runs.state, 1e-3)
    first = jaxrl.train(runs.agent, 2, until=ITERATIONS // 2)
    assert first.iteration == ITERATIONS // 2
    assert_same(jaxrl.train(runs.agent, start=first).state, whole.state)
