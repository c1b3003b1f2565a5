"""Training a population: one compiled program per chunk of iterations, spread over the devices.

Between chunks the host shows progress, evaluates, and listens for Ctrl-C. A population of one is
not vmapped.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxrl.agent import Tag, derive
from jaxrl.devices import MEMBERS, compiled, place
from jaxrl.evaluate import Evaluation, evaluate
from jaxrl.loop import finished, iterate
from jaxrl.members import for_each, layout, map_members, specs

CHUNKS = 100  # pieces that a run is cut into, between which the host may act


class Progress(NamedTuple):
    """What a `progress` callback gets between chunks; metrics are means over members."""

    iteration: int
    iterations: int
    env_steps: int
    total_steps: int
    members: int
    seconds: float
    metrics: dict[str, float]


class Trained(NamedTuple):
    """A population after training: the fields of `Run` with a leading axis of members."""

    agents: Any
    states: Any
    metrics: dict[str, np.ndarray]
    env_steps: np.ndarray
    iterations: np.ndarray
    evaluations: dict[str, np.ndarray]
    compile_seconds: float
    run_seconds: float
    interrupted: bool


def run_population(
    agents: Any,
    seeds: list[int],
    evaluations: int = 0,
    episodes: int = 64,
    progress: Callable[[Progress], None] | None = None,
    states: Any = None,
    first: int = 0,
    last: int | None = None,
) -> Trained:
    """Train members that share one program, spread over the local devices.

    Args:
        agents: a stacked agent (leading axis of members on every traced field).
        seeds: one root seed a member.
        states: stacked states to go on from at iteration `first`, instead of fresh ones.
        last: stop after this iteration.
    """
    begin = time.perf_counter()
    members = len(seeds)
    mesh, rows = layout(members)
    agents = map_members(lambda x: x[rows], agents)
    compile_seconds = 0.0
    if states is None:
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)[rows])
        initialise, compile_seconds = compiled(_initialise, agents, keys)
        states = jax.block_until_ready(initialise(agents, keys))
    else:
        states = jax.tree.map(lambda x: x[rows], states)
    agents, states = place(agents, mesh, specs(agents)), place(states, mesh)

    last = min(agents.num_iterations, agents.num_iterations if last is None else last)
    pieces = max(1, evaluations) * max(1, round(CHUNKS / max(1, evaluations)))
    bounds = np.unique(np.round(np.linspace(first, last, pieces + 1)).astype(int))
    targets = np.round(np.linspace(first, last, evaluations + 1)).astype(int)[1:]
    length = int(np.diff(bounds).max())
    chunks: list[Any] = []
    evaluated: list[tuple[Any, Any]] = []
    steps_taken = np.zeros(len(rows), int)
    interrupted = False

    with _stop_on_interrupt() as stop_asked:
        for t, stop in itertools.pairwise(bounds):
            args: Any = agents, states, np.int32(t), np.int32(stop)
            chunk, seconds = compiled(_chunk, *args, mesh=mesh, length=length)
            compile_seconds += seconds
            states, done, chunk_rows = chunk(*args)
            chunks.append(jax.tree.map(lambda x, n=stop - t: np.asarray(x)[:, :n], chunk_rows))
            steps_taken = np.maximum(steps_taken, chunks[-1]["env_steps"].max(axis=1))
            ended = bool(np.all(done))
            if stop in targets or (ended and evaluations):
                args = agents, states, _member_keys(states.key, Tag.EVALUATE, int(stop))
                program, seconds = compiled(_evaluate_all, *args, mesh=mesh, episodes=episodes)
                compile_seconds += seconds
                evaluated.append((steps_taken, np.asarray(program(*args).returns)))
            if progress is not None:
                elapsed = time.perf_counter() - begin - compile_seconds
                newest = chunks[-1]["metrics"]
                progress(
                    Progress(
                        int(stop),
                        agents.num_iterations,
                        int(steps_taken[:members].sum()),
                        agents.total_steps * members,
                        members,
                        elapsed,
                        {name: _mean(values[:members]) for name, values in newest.items()},
                    )
                )
            interrupted = stop_asked.is_set()
            if interrupted or ended:
                break

    joined = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1)[:members], *chunks)
    taken = joined["env_steps"] >= 0
    env_steps = np.where(taken, joined["env_steps"], np.nan)
    kept = taken.any(axis=0)
    agents = map_members(lambda x: x[:members], agents)
    states = jax.tree.map(lambda x: x[:members], states)
    return Trained(
        agents,
        states,
        {name: values[:, kept] for name, values in joined["metrics"].items()},
        env_steps[:, kept],
        first + taken.sum(axis=1),
        _stack_evaluations(evaluated, members, episodes),
        compile_seconds,
        time.perf_counter() - begin - compile_seconds,
        interrupted,
    )


def evaluate_population(
    trained: Trained, episodes: int = 64, seed: int = 0, deterministic: bool = True
) -> Evaluation:
    """Fresh episodes of every member, keys from its root key and `seed`; (members, episodes)."""
    members = len(trained.iterations)
    mesh, rows = layout(members)
    agents = map_members(lambda x: x[rows], trained.agents)
    states = jax.tree.map(lambda x: x[rows], trained.states)
    keys = _member_keys(states.key, Tag.TEST, seed)
    args = place(agents, mesh, specs(agents)), *place((states, keys), mesh)
    program, _ = compiled(
        _evaluate_all, *args, mesh=mesh, episodes=episodes, deterministic=deterministic
    )
    result = program(*args)
    return jax.tree.map(lambda x: np.asarray(x)[:members], result)


@jax.jit
def _initialise(agents: Any, keys: jax.Array) -> Any:
    """Fresh states, one member after the other, on one device.

    Orthogonal initialisers call LAPACK. Batched by vmap, its CPU kernel waits for threads of the
    pool that runs the programs of all CPU devices, and hangs for ever where those are taken.
    """

    def init(row):
        i, key = row
        return map_members(lambda x: x[i], agents).init(key)

    return lax.map(init, (jnp.arange(len(keys)), keys))


@partial(jax.jit, static_argnames=("mesh", "length"), donate_argnums=(1,))
def _chunk(agents: Any, states: Any, t: Any, stop: Any, *, mesh: Any, length: int) -> Any:
    """Iterations t..stop-1 (traced; at most `length`) of every member, each device its own."""

    def local(agents, states, t, stop):
        def step(states, t):
            return for_each(lambda agent, state: agent.step(state, t), agents, states)

        states, rows = iterate(step, agents, states, t, stop, length)
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
        return states, finished(agents, states), rows

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs(agents), MEMBERS, P(), P()),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, t, stop)


@partial(jax.jit, static_argnames=("mesh", "episodes", "deterministic"))
def _evaluate_all(
    agents: Any, states: Any, keys: Any, *, mesh: Any, episodes: int, deterministic: bool = True
) -> Evaluation:
    """Evaluate every member's policy; arrays (members, episodes)."""

    def one(agent, state, key):
        return evaluate(agent, state, key, episodes, deterministic=deterministic)

    spread = jax.shard_map(
        partial(for_each, one),
        mesh=mesh,
        in_specs=(specs(agents), MEMBERS, MEMBERS),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, keys)


def _member_keys(keys: jax.Array, tag: Tag, t: int) -> jax.Array:
    return jax.vmap(lambda key: derive(key, tag, t))(keys)


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN, NaN where all is."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else float("nan")


def _stack_evaluations(
    evaluated: list[tuple[Any, Any]], members: int, episodes: int
) -> dict[str, np.ndarray]:
    if not evaluated:
        empty = np.zeros((members, 0))
        return {"env_steps": empty, "returns": np.zeros((members, 0, episodes))}
    steps = np.stack([s for s, _ in evaluated], axis=1)[:members].astype(float)
    returns = np.stack([r for _, r in evaluated], axis=1)[:members]
    return {"env_steps": steps, "returns": returns}


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C finishes the chunk under way and keeps what was computed; a second one raises."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_interrupt(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
