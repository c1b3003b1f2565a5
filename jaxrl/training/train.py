"""Training one agent: in chunks with the host between them, or as one pure function.

`train` is a batch of one; `fused` is the whole run as one program. Both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.agent import Agent
from jaxrl.training.batches import Batch, train_batch
from jaxrl.training.callbacks import Callback, OnNaN, Progress, closing, guarded
from jaxrl.training.checkpoint import Checkpoints, Saved
from jaxrl.training.history import History
from jaxrl.training.loop import iterate
from jaxrl.training.members import stack, stack_agents
from jaxrl.training.meter import metered
from jaxrl.training.run import Run
from jaxrl.training.schedule import Schedule


def fused(agent: Agent, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
    """A whole run as one pure function of agent and root key: jit it, vmap it, differentiate it.

    Returns the final state and the metrics, each (iterations,). An agent whose iterations vary in
    length runs until `total_steps` are taken; rows that it did not need are NaN.
    """
    state = agent.init(key)
    if agent.env_steps(state) is None:
        return lax.scan(agent.step, state, jnp.arange(agent.num_iterations, dtype=jnp.int32))
    stop = jnp.asarray(agent.num_iterations, jnp.int32)
    first = jnp.zeros((), jnp.int32)
    state, rows = iterate(agent.step, agent, state, first, stop, agent.num_iterations)
    return state, rows["metrics"]


def train(
    agent: Agent,
    seed: int = 0,
    *,
    evaluations: int = 0,
    episodes: int = 64,
    callbacks: Iterable[Callback | Callable[[Progress], None]] = (),
    checkpoints: Checkpoints | None = None,
    start: Run | None = None,
    until: int | None = None,
    on_nan: str = "report",
    data_parallel: bool = False,
    record: Sequence[str] | None = None,
    progress: bool = False,
) -> Run:
    """Train one agent for `agent.total_steps` steps.

    Args:
        seed: the root key's; ignored where `start` is given.
        evaluations: how many times to evaluate during the whole run, evenly spaced, the last at
            the end. A run that is continued from `start` has those that are left.
            Where iterations vary in length, as many at most: a run that ends early has fewer.
        episodes: episodes of each such evaluation.
        callbacks: called between chunks: functions of one `Progress`, or `jaxrl.Callback`s.
        checkpoints: where to save during training. Where the folder has checkpoints of this run
            already, it is resumed from the newest.
        start: a run to continue, up to `agent.total_steps`. Its learning continues exactly where
            it stopped; schedules follow the new `total_steps`. Where the agent learns from another
            source by now, as from environments after recorded data, it is a run of its own that
            starts from what was learnt, with fresh environments and an empty replay.
        until: stop after this iteration; schedules still follow `total_steps`.
        on_nan: "report" or "stop", where loss, returns or parameters are not finite; see
            `jaxrl.sweep`.
        data_parallel: spread the environments over the local devices; gradients are of all of them.
        record: names in the environment's `info` that are summed over each episode and shown.
        progress: show a bar, in a terminal or a notebook; elsewhere a few lines on standard error.

    Raises:
        ValueError: an unknown `on_nan`; `start` has nothing left to do; checkpoints of another run,
            or of none that can be read.
    """
    if record is not None:
        agent = agent.replace(record=tuple(record))
    own = [*guarded(callbacks), OnNaN(on_nan)]
    total_steps = agent.num_iterations * agent.steps_per_iteration
    with closing(own), metered(progress, total_steps) as meter:
        own = [*guarded([meter] if meter else []), *own]
        saved = None if start is None else _saved(agent, start)
        batch = Batch(0, [0], stack_agents([agent]), [int(seed)])
        schedule = Schedule(agent.num_iterations, evaluations, episodes, until)
        return train_batch(batch, schedule, own, checkpoints, saved, data_parallel)[0]


def _saved(agent: Agent, start: Run) -> Saved:
    """A run as what a batch of one starts from.

    Raises: ValueError where nothing is left to do, or its state cannot train on.
    """
    fresh = jax.eval_shape(agent.init, jax.random.key(0))
    given, without, whole = [
        str(jax.tree.structure(x)) for x in (start.state, agent.without_replay(fresh), fresh)
    ]
    is_other = type(start.agent) is not type(agent)  # whose state may look the same
    if given not in (without, whole) or is_other:
        state = jax.jit(agent.adopt)(start.state)
        return Saved(0, stack([state]), History.empty(1, 0), 0.0)
    if given == without != whole:
        raise ValueError(
            f"{agent.name}: its replay memory was not kept (it was read from the checkpoint of a "
            "run that has ended, or its population did not fit into memory at once): continue "
            "from its checkpoint"
        )
    first, taken = int(start.iteration), agent.env_steps(start.state)
    if first >= agent.num_iterations or (taken is not None and taken >= agent.total_steps):
        raise ValueError(
            f"{agent.name}: total_steps={agent.total_steps} leaves nothing to do after "
            f"iteration {first}; raise it with agent.replace(total_steps=...)"
        )
    return Saved(first, stack([start.state]), History.empty(1, 0, first), 0.0)
