"""Training one agent: in chunks with the host between them, or as one pure function.

`train` is a population of one; `fused` is the whole run as one program. Both agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrl.agent import Agent
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.loop import iterate
from jaxrl.training.members import map_members, stack, stack_agents
from jaxrl.training.population import Progress, Trained, run_population


class Run(NamedTuple):
    """A trained agent.

    Attributes:
        agent, state: what `agent.policy(state)`, `evaluate` and further training take.
        metrics: name -> float array (iterations,).
        env_steps: environment steps taken by the end of each iteration (iterations,).
        iteration: iterations done.
        evaluations: "env_steps" (k,) and "returns" (k, episodes) of evaluations during training.
        compile_seconds, run_seconds: time spent compiling, and all the rest.
        diverged_at: the iteration after which loss or parameters were not finite; NaN: they are.
        interrupted: the run was stopped early, by Ctrl-C or as `on_nan` says.
    """

    agent: Any
    state: Any
    metrics: dict[str, np.ndarray]
    env_steps: np.ndarray
    iteration: int
    evaluations: dict[str, np.ndarray]
    diverged_at: float
    compile_seconds: float
    run_seconds: float
    interrupted: bool


def fused(agent: Agent, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
    """A whole run as one pure function of agent and root key: jit it, vmap it, differentiate it.

    Returns the final state and the metrics, each (iterations,). An agent whose iterations vary in
    length runs until `total_steps` are taken; rows that it did not need are NaN.
    """
    state = agent.init(key)
    if agent.env_steps(state) is None:
        return lax.scan(agent.step, state, jnp.arange(agent.num_iterations))
    stop = jnp.asarray(agent.num_iterations)
    first = jnp.zeros((), jnp.int32)
    state, rows = iterate(agent.step, agent, state, first, stop, agent.num_iterations)
    return state, rows["metrics"]


def train(
    agent: Agent,
    seed: int = 0,
    *,
    evaluations: int = 0,
    episodes: int = 64,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
    start: Run | None = None,
    until: int | None = None,
    on_nan: str = "report",
    data_parallel: bool = False,
) -> Run:
    """Train one agent for `agent.total_steps` environment steps.

    Args:
        seed: the root key's; ignored where `start` is given.
        evaluations: how many times to evaluate during the whole run, evenly spaced, the last at
            the end. A run that goes on from `start` has those that are left.
            Where iterations vary in length, as many at most: a run that ends early has fewer.
        episodes: episodes of each such evaluation.
        progress: called between chunks.
        checkpoints: where to save the run on its way. Where the folder has checkpoints of this run
            already, it goes on from the newest.
        start: a run to go on from, up to `agent.total_steps`. Its learning goes on exactly where
            it stopped; schedules follow the new `total_steps`.
        until: stop after this iteration; schedules still follow `total_steps`.
        on_nan: "report" or "stop", where loss or parameters are not finite; see `jaxrl.sweep`.
        data_parallel: spread the environments over the local devices; gradients are of all of them.

    Raises:
        ValueError: an unknown `on_nan`; `start` has nothing left to do; checkpoints of another run,
            or of none that can be read.
    """
    check_on_nan(on_nan)
    first = 0 if start is None else start.iteration
    taken = None if start is None else agent.env_steps(start.state)
    if first >= agent.num_iterations or (taken is not None and taken >= agent.total_steps):
        raise ValueError(
            f"{agent.name}: total_steps={agent.total_steps} leaves nothing to do after "
            f"iteration {first}; raise it with agent.replace(total_steps=...)"
        )
    if start is not None:
        fresh = jax.eval_shape(agent.init, jax.random.key(0))
        structures = [
            str(jax.tree.structure(x)) for x in (start.state, agent.without_replay(fresh), fresh)
        ]
        if structures[0] == structures[1] != structures[2]:
            raise ValueError(
                f"{agent.name}: its replay memory was not kept (its population did not fit into "
                "memory at once): go on from its checkpoint"
            )
    agents = stack_agents([agent])
    states = None if start is None else stack([start.state])
    trained = run_population(
        agents,
        [seed],
        evaluations,
        episodes,
        progress,
        checkpoints,
        states=states,
        first=first,
        last=until,
        stop_on_nan=on_nan == "stop",
        data_parallel=data_parallel,
    )
    return member(trained, 0)


def check_on_nan(on_nan: str) -> None:
    """Raise ValueError where `on_nan` is no choice."""
    if on_nan not in ("report", "stop"):
        raise ValueError(f"on_nan={on_nan!r} is not one of report, stop")


def member(trained: Trained, i: int) -> Run:
    """Member `i` of a population as an ordinary run."""
    iterations = int(trained.iterations[i])
    rows = int((~np.isnan(trained.env_steps[i])).sum())
    agent = map_members(lambda x: jnp.asarray(x[i]), trained.agents)
    state = jax.tree.map(lambda x: jnp.asarray(x[i]), trained.states)
    return Run(
        agent,
        state,
        {name: values[i, :rows] for name, values in trained.metrics.items()},
        trained.env_steps[i, :rows],
        iterations,
        {name: values[i] for name, values in trained.evaluations.items()},
        float(trained.diverged_at[i]),
        trained.compile_seconds,
        trained.run_seconds,
        trained.interrupted,
    )
