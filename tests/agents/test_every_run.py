"""What every agent of the registry promises, as tiny runs: a few compiled programs each."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import Agent
from jaxrl.training.members import stack_agents
from tests.configurations import (
    ITERATIONS,
    NAMES,
    changed,
    main_configuration,
    other_values,
)
from tests.helpers import assert_close, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]


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


def test_nothing_is_traced_again_for_other_values(runs):
    """chex raises at a second trace; that the numbers move shows that the values were read."""
    other = other_settings(runs.agent)
    state, _ = runs.fused(other, jax.random.key(3))
    assert jax.tree.structure(other.learned(state)) == jax.tree.structure(
        runs.agent.learned(runs.state)
    )
    with pytest.raises(AssertionError):
        assert_same(other.learned(state), runs.agent.learned(runs.state))


def test_learnt_numbers_and_metrics_are_finite(runs):
    chex.assert_tree_all_finite(runs.agent.learned(runs.state))
    taken = runs.agent.env_steps(runs.state)
    last = ITERATIONS - 1 if taken is None else int(taken) // runs.agent.steps_per_iteration - 1
    newest = {k: v[: last + 1] for k, v in runs.metrics.items()}
    never = [k for k, v in newest.items() if not np.isfinite(v).any()]
    assert not never, f"never a number: {never}"
    assert not any(np.isinf(v).any() for v in newest.values())


def test_members_are_single_runs(runs):
    settings = [runs.agent, other_settings(runs.agent)]
    together = jax.jit(jax.vmap(jaxrl.fused, in_axes=(runs.agent.axes(), None)))
    results = together(stack_agents(settings), jax.random.key(2))
    for i, agent in enumerate(settings):
        alone = runs.fused(agent, jax.random.key(2))
        member = jax.tree.map(lambda x, i=i: x[i], results)
        assert_close(agent.learned(member[0]), agent.learned(alone[0]), 1e-3)
        assert_close(member[1], alone[1], 1e-3)


def test_chunks_are_the_fused_run_and_resuming_is_exact(runs):
    whole = jaxrl.train(runs.agent, 2)
    assert_close(whole.state, runs.state, 1e-3)
    first = jaxrl.train(runs.agent, 2, until=ITERATIONS // 2)
    assert first.iteration == ITERATIONS // 2
    assert_same(jaxrl.train(runs.agent, start=first).state, whole.state)


def test_probabilities_of_actions_add_up_to_one(runs):
    """Of agents that know them: over all actions, or over the box by quadrature."""
    agent, state = runs.agent, runs.state
    if agent.discrete:
        actions, weights = jnp.arange(agent.action_space.n), 1.0
    elif agent.name == "guidance":
        return  # its actions are controls, and it draws none
    else:
        assert agent.action_space.shape == (1,)
        edges = jnp.tanh(jnp.linspace(-9, 9, 20_001))
        actions, weights = ((edges[1:] + edges[:-1]) / 2)[:, None], jnp.diff(edges)
    for obs in (jnp.full(agent.obs_shape, x) for x in (-1.0, 0.5)):
        log_probs = jax.vmap(partial(agent.log_prob, state, obs))(actions)
        if log_probs is not None:
            # Beyond 8, where 0.8 % of a normal of deviation 3 are, single precision knows hardly
            # any tanh but 1.
            assert float((jnp.exp(log_probs) * weights).sum()) == pytest.approx(1, abs=1e-2)
    if log_probs is None:
        without = ("softgac", "td3", "td3bc", "bc", "iql", "awac", "recurrentppo", "acsac")
        assert runs.agent.name in without
