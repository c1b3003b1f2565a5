"""The training loop: one compiled program per chunk, for a population or a single run.

`fused` is the whole run as one pure function. `run_population` is the same loop cut into chunks of
iterations, with the host between them for progress, evaluation and Ctrl-C; both agree. A single
run is a population of one, which is not vmapped.
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

from jaxrl.agent import Agent, Tag, derive
from jaxrl.devices import MEMBERS, compiled, member_mesh, place
from jaxrl.evaluate import Evaluation, evaluate

CHUNKS = 100  # pieces that a run is cut into, between which the host may act


class Run(NamedTuple):
    """A trained agent.

    Attributes:
        agent, state: what `agent.policy(state)`, `evaluate` and further training take.
        metrics: name -> float array (iterations,).
        env_steps: environment steps taken by the end of each iteration (iterations,).
        iteration: iterations done.
        evaluations: "env_steps" (k,) and "returns" (k, episodes) of evaluations during training.
        compile_seconds, run_seconds: time spent compiling, and all the rest.
        interrupted: the run was stopped early by Ctrl-C.
    """

    agent: Any
    state: Any
    metrics: dict[str, np.ndarray]
    env_steps: np.ndarray
    iteration: int
    evaluations: dict[str, np.ndarray]
    compile_seconds: float
    run_seconds: float
    interrupted: bool


class Progress(NamedTuple):
    """What a `progress` callback gets between chunks; metrics are means over members."""

    iteration: int
    iterations: int
    env_steps: int
    total_steps: int
    members: int
    seconds: float
    metrics: dict[str, float]


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
    state, rows = _iterate(agent.step, agent, state, first, stop, agent.num_iterations)
    return state, rows["metrics"]


def train(
    agent: Agent,
    seed: int = 0,
    *,
    evaluations: int = 0,
    episodes: int = 64,
    progress: Callable[[Progress], None] | None = None,
    start: Run | None = None,
    until: int | None = None,
) -> Run:
    """Train one agent for `agent.total_steps` environment steps.

    Args:
        seed: the root key's; ignored where `start` is given.
        evaluations: how many times to evaluate during training, evenly spaced, the last at the end.
            Where iterations vary in length, as many at most: a run that ends early has fewer.
        episodes: episodes of each such evaluation.
        progress: called between chunks.
        start: a run to go on from, up to `agent.total_steps`. Its learning goes on exactly where
            it stopped; schedules follow the new `total_steps`.
        until: stop after this iteration; schedules still follow `total_steps`.

    Raises:
        ValueError: `start` has nothing left to do.
    """
    first = 0 if start is None else start.iteration
    taken = None if start is None else agent.env_steps(start.state)
    if first >= agent.num_iterations or (taken is not None and taken >= agent.total_steps):
        raise ValueError(
            f"{agent.name}: total_steps={agent.total_steps} leaves nothing to do after "
            f"iteration {first}; raise it with agent.replace(total_steps=...)"
        )
    agents = stack_agents([agent])
    states = None if start is None else stack([start.state])
    trained = run_population(
        agents, [seed], evaluations, episodes, progress, states=states, first=first, last=until
    )
    return member(trained, 0)


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
        trained.compile_seconds,
        trained.run_seconds,
        trained.interrupted,
    )


def stack(trees: list[Any]) -> Any:
    """One pytree with a leading axis of members, as strongly typed arrays."""

    def leaf(*xs: Any) -> jax.Array:
        stacked = jnp.stack([jnp.asarray(x) for x in xs])
        return lax.convert_element_type(stacked, stacked.dtype)

    return jax.tree.map(leaf, *trees)


def map_members(fn: Callable[..., Any], agents: Any, *more: Any) -> Any:
    """Agents with `fn` applied to every array but the shared ones, which are the first agent's."""

    def field(axis: int | None, first: Any, *others: Any) -> Any:
        return first if axis is None else jax.tree.map(fn, first, *others)

    return jax.tree.map(field, agents.axes(), agents, *more, is_leaf=lambda x: x is None)


def stack_agents(agents: list[Any]) -> Any:
    """Agents of one program as one, a leading axis of members on all that they do not share."""
    return map_members(lambda *xs: stack(list(xs)), *agents)


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
    mesh, rows = _layout(members)
    agents = map_members(lambda x: x[rows], agents)
    compile_seconds = 0.0
    if states is None:
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)[rows])
        initialise, compile_seconds = compiled(_initialise, agents, keys)
        states = jax.block_until_ready(initialise(agents, keys))
    else:
        states = jax.tree.map(lambda x: x[rows], states)
    agents, states = place(agents, mesh, _specs(agents)), place(states, mesh)

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
            finished = bool(np.all(done))
            if stop in targets or (finished and evaluations):
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
            if interrupted or finished:
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
            return _for_each(lambda agent, state: agent.step(state, t), agents, states)

        states, rows = _iterate(step, agents, states, t, stop, length)
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
        return states, _finished(agents, states), rows

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_specs(agents), MEMBERS, P(), P()),
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
        partial(_for_each, one),
        mesh=mesh,
        in_specs=(_specs(agents), MEMBERS, MEMBERS),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, keys)


def evaluate_population(
    trained: Trained, episodes: int = 64, seed: int = 0, deterministic: bool = True
) -> Evaluation:
    """Fresh episodes of every member, keys from its root key and `seed`; (members, episodes)."""
    members = len(trained.iterations)
    mesh, rows = _layout(members)
    agents = map_members(lambda x: x[rows], trained.agents)
    states = jax.tree.map(lambda x: x[rows], trained.states)
    keys = _member_keys(states.key, Tag.TEST, seed)
    args = place(agents, mesh, _specs(agents)), *place((states, keys), mesh)
    program, _ = compiled(
        _evaluate_all, *args, mesh=mesh, episodes=episodes, deterministic=deterministic
    )
    result = program(*args)
    return jax.tree.map(lambda x: np.asarray(x)[:members], result)


def _layout(members: int) -> tuple[Any, np.ndarray]:
    """The mesh for a population, and its rows: filled up with copies of the last member."""
    mesh = member_mesh(members)
    return mesh, np.minimum(np.arange(-(-members // mesh.size) * mesh.size), members - 1)


def _member_keys(keys: jax.Array, tag: Tag, t: int) -> jax.Array:
    return jax.vmap(lambda key: derive(key, tag, t))(keys)


def _specs(agents: Any) -> Any:
    """Where the arrays of stacked agents go: members over the mesh, what they share everywhere."""
    return jax.tree.map(
        lambda axis: P() if axis is None else MEMBERS, agents.axes(), is_leaf=lambda x: x is None
    )


def _for_each(fn: Callable[..., Any], agents: Any, *trees: Any) -> Any:
    """vmap over members, except that an axis of one is not worth a batched program."""
    if jax.tree.leaves(trees)[0].shape[0] > 1:
        return jax.vmap(fn, in_axes=(agents.axes(), *[0] * len(trees)))(agents, *trees)
    agent, row = map_members(lambda x: x[0], agents), jax.tree.map(lambda x: x[0], trees)
    return jax.tree.map(lambda x: x[None], fn(agent, *row))


def _iterate(
    step: Callable[..., Any], agents: Any, states: Any, t: Any, stop: Any, length: int
) -> Any:
    """Run `step(states, t)` for t..stop-1, its metrics written to `length` rows (NaN: not run).

    The loop stands outside of any vmap over members, so that t is never batched and a cond on it
    stays a branch. Members that have taken all their steps (which only happens early where
    iterations vary in length) are held still until the slowest is done.
    """

    step = jax.jit(step)  # traced once, though both its shapes and itself are asked for

    def row(states, metrics, held, i):
        env_steps = agents.env_steps(states)
        if env_steps is None:
            env_steps = jnp.broadcast_to((i + 1) * agents.steps_per_iteration, held.shape)
        metrics = {k: jnp.where(held, jnp.nan, v) for k, v in metrics.items()}
        return {"metrics": metrics, "env_steps": jnp.where(held, -1, env_steps)}

    def body(carry):
        i, states, rows = carry
        held = _finished(agents, states)
        new, metrics = step(states, i)
        if agents.env_steps(states) is not None:
            new = jax.tree.map(lambda old, new: _where(held, old, new), states, new)
        written = row(new, metrics, held, i)
        rows = jax.tree.map(lambda all_rows, x: all_rows.at[i - t].set(x), rows, written)
        return i + 1, new, rows

    def unfinished(carry):
        i, states, _ = carry
        return (i < stop) & ~jnp.all(_finished(agents, states))

    metrics = jax.eval_shape(lambda s: step(s, t)[1], states)
    shapes = jax.eval_shape(row, states, metrics, _finished(agents, states), t)
    empty = jax.tree.map(
        lambda s: jnp.full(
            (length, *s.shape), jnp.nan if jnp.issubdtype(s.dtype, jnp.floating) else -1, s.dtype
        ),
        shapes,
    )
    _, states, rows = lax.while_loop(unfinished, body, (t, states, empty))
    return states, rows


def _finished(agents: Any, states: Any) -> jax.Array:
    """Which members have taken all their steps; where iterations are of one length, `t` tells."""
    env_steps = agents.env_steps(states)
    if env_steps is None:
        return jnp.zeros(states.key.shape, bool)
    return env_steps >= agents.total_steps


def _where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)


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
