"""What every agent of the registry promises, as programs that are traced and not run.

A new agent is under all of it, and of test_every_run.py, by being registered.
"""

import inspect
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import agents
from jaxrl import Agent
from jaxrl.agent import Hyperparameter, Policy, memoryless, static, traced
from jaxrl.training.members import stack_agents
from tests.configurations import (
    ENVS,
    LENGTH,
    NAMES,
    changed,
    configurations,
    main_configuration,
    other_values,
)
from tests.helpers import Toy, equations, primitives

KEY = jax.random.key(0)


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


@pytest.mark.parametrize("name", NAMES)
def test_the_state_keeps_its_shapes(name):
    """A step's result is what the next step takes, to the dtype; a scan carries it."""
    for _, _, program in each(name):
        chex.assert_trees_all_equal_shapes_and_dtypes(program.state, program.after)
        assert not any(x.weak_type for x in jax.tree.leaves((program.state, program.after)))


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_scalars_that_the_page_explains(name):
    usual = {"episode_return", "episode_length", "episodes"}
    page = (Path(agents.__file__).parent / "README.md").read_text()
    explained = page[page.index("## Metrics") :]
    for kind, agent, program in each(name):
        chex.assert_shape(list(program.metrics.values()), ())
        if agent.actors(program.state) is not None:
            assert usual <= program.metrics.keys(), kind
        missing = [m for m in program.metrics if f"| `{m}` |" not in explained]
        assert not missing, f"agents/README.md does not say what they are: {missing}"


@pytest.mark.parametrize("name", NAMES)
def test_policies_act_within_the_space(name):
    for _, agent, program in each(name):
        assert all(isinstance(policy, Policy) for policy in program.policies)
        chex.assert_shape(program.actions, agent.action_space.shape)
        for action in program.actions:
            assert jnp.issubdtype(action.dtype, jnp.integer) == agent.discrete


@cache
def steps(name: str) -> list[Any]:
    """The programs of a step of one agent, and of two together."""
    agent = main_configuration(name)

    def step(agent, state, t):
        return agent.step(state, t)

    state = traces(name)[next(iter(configurations(name)))].state
    alone = jax.make_jaxpr(step)(agent, state, jnp.int32(0))
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state)
    together = jax.make_jaxpr(jax.vmap(step, (agent.axes(), 0, None)))(
        stack_agents([agent, agent]), states, jnp.int32(0)
    )
    return [alone, together]


@pytest.mark.parametrize("name", NAMES)
def test_branches_survive_vmap(name):
    """t is never batched, and what follows from it alone stays a branch, not a select."""
    branches = [primitives(program.jaxpr).count("cond") for program in steps(name)]
    assert branches[0] == branches[1]


def waits_for_lapack(program) -> bool:
    """Whether it has a batch factorised by LAPACK; see `parts.linalg` and `parts.initializers`."""
    names = {"cholesky", "lu", "qr", "householder_product", "triangular_solve", "eigh", "svd"}
    return any(
        equation.primitive.name in names and equation.invars[0].aval.ndim > 2
        for equation in equations(program.jaxpr)
    )


def test_lapack_is_found():
    for function in (jnp.linalg.inv, jnp.linalg.qr, jnp.linalg.cholesky, jnp.linalg.eigh):
        assert waits_for_lapack(jax.make_jaxpr(jax.vmap(function))(jnp.ones((3, 2, 2))))


@pytest.mark.parametrize("name", NAMES)
def test_no_batch_waits_for_lapack(name):
    """Such calls can wait for each other for ever, where CPUs' threads are few."""
    agent = main_configuration(name)
    keys = jax.eval_shape(lambda key: jax.random.split(key, 2), KEY)
    assert not waits_for_lapack(jax.make_jaxpr(jax.vmap(agent.init))(keys))
    assert not waits_for_lapack(steps(name)[1])


# Slow: one hyper-parameter away -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_choice_changes_the_program_and_leaves_nothing_dead(name):
    """Static ones, exactly: the program of every other value differs; there, all is reached too.

    Each is changed in the first kind of configuration in which it has an effect, and what a loop
    declares for all its agents in the first of them.
    """
    faults = []
    for h in type(main_configuration(name)).hyperparameters():
        if h.kind == "static" and h.name not in LENGTH and first_with(h, name) == name:
            faults += faults_of(h, name)
    assert not faults, "\n".join(faults)


def first_with(h: Hyperparameter, name: str) -> str:
    """The first agent in which what this one declares or inherits has an effect, else this one."""

    def declared(name):
        cls = type(main_configuration(name))
        return next((c for c in cls.__mro__ if h.name in inspect.get_annotations(c)), None)

    for other in NAMES:
        in_effect = any(h.name not in agent.unused() for agent in configurations(other).values())
        if in_effect and declared(other) is declared(name):
            return other
    return name


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
