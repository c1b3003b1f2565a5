"""Training a population: one compiled program per chunk of iterations, spread over the devices.

Between chunks the host shows progress, evaluates, saves, and listens for Ctrl-C. A population of
one is not vmapped.
"""

from __future__ import annotations

import contextlib
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
from jaxrl.checkpoint import Checkpoints, Store, checksum
from jaxrl.devices import MEMBERS, compiled, place
from jaxrl.evaluate import Evaluation, evaluate
from jaxrl.loop import finished, iterate
from jaxrl.members import for_each, layout, map_members, specs

CHUNKS = 100  # pieces that a run is cut into, between which the host may act
CHUNK_SECONDS = 10.0  # pieces that last longer are cut again, but for the first, not yet timed


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
    checkpoints: Checkpoints | None = None,
    states: Any = None,
    first: int = 0,
    last: int | None = None,
) -> Trained:
    """Train members that share one program, spread over the local devices.

    Args:
        agents: a stacked agent (leading axis of members on every traced field).
        seeds: one root seed a member.
        evaluations: how many during the whole run, evenly spaced, the last at its end.
        checkpoints: where to save, and what to go on from where there is something.
        states: stacked states to go on from at iteration `first`, instead of fresh ones.
        last: stop after this iteration.
    """
    begin, compile_seconds = time.perf_counter(), 0.0
    members = len(seeds)
    mesh, rows = layout(members)
    spread = map_members(lambda x: x[rows], agents)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)[rows])
    store = Store(checkpoints, _identity(agents, seeds)) if checkpoints else None
    saved = store.restore(jax.eval_shape(_initialise, agents, keys[:members])) if store else None
    history: list[dict[str, np.ndarray]] = []
    if saved is not None:
        first, history = saved.iteration, saved.history
        begin -= saved.seconds
        states = jax.tree.map(lambda x: x[rows], saved.states)
        saved = saved._replace(states=None)  # not twice in memory
    elif states is None:
        initialise, compile_seconds = compiled(_initialise, spread, keys)
        states = jax.block_until_ready(initialise(spread, keys))
    else:
        states = jax.tree.map(lambda x: x[rows], states)
    spread, states = place(spread, mesh, specs(spread)), place(states, mesh)

    # Where the host acts follows from the whole run, not from where this part begins and ends.
    whole = agents.num_iterations
    last = whole if last is None else min(last, whole)
    pieces = max(1, evaluations) * max(1, round(CHUNKS / max(1, evaluations)))
    bounds = np.unique(np.round(np.linspace(0, whole, pieces + 1)).astype(int))
    targets = np.round(np.linspace(0, whole, evaluations + 1)).astype(int)[1:]
    length = int(np.diff(bounds).max())
    t, limit = first, length
    unsaved: list[dict[str, np.ndarray]] = []
    steps_taken = np.zeros(members, int)
    for piece in history:
        steps_taken = np.maximum(steps_taken, piece["env_steps"].max(axis=1, initial=0))
    interrupted = False

    # Closing waits for what is being written, whatever ends the loop.
    closing = contextlib.closing(store) if store else contextlib.nullcontext()
    with closing, _stop_on_signal() as stop_asked:
        while t < last and (steps_taken < agents.total_steps).any():
            stop = min(int(bounds[bounds > t][0]), t + limit, last)
            args: Any = spread, states, np.int32(t), np.int32(stop)
            chunk, seconds = compiled(_chunk, *args, mesh=mesh, length=length)
            compile_seconds += seconds
            chunk_begin = time.perf_counter()
            states, done, made = chunk(*args)
            piece = jax.tree.map(lambda x, n=stop - t: np.asarray(x)[:members, :n], made)
            limit = max(1, int(CHUNK_SECONDS * (stop - t) / (time.perf_counter() - chunk_begin)))
            t = stop
            steps_taken = np.maximum(steps_taken, piece["env_steps"].max(axis=1))
            metrics = piece.pop("metrics")
            piece |= {f"metrics/{name}": values for name, values in metrics.items()}
            ended = bool(np.all(done))
            if t in targets or (ended and evaluations):
                args = spread, states, _member_keys(states.key, Tag.EVALUATE, t)
                program, seconds = compiled(_evaluate_all, *args, mesh=mesh, episodes=episodes)
                compile_seconds += seconds
                piece["evaluation_steps"] = steps_taken[:, None].astype(float)
                piece["evaluation_returns"] = np.asarray(program(*args).returns)[:members, None]
            unsaved.append(piece)
            if progress is not None:
                progress(
                    Progress(
                        t,
                        agents.num_iterations,
                        int(steps_taken.sum()),
                        agents.total_steps * members,
                        members,
                        time.perf_counter() - begin - compile_seconds,
                        {name: _mean(values) for name, values in metrics.items()},
                    )
                )
            interrupted = stop_asked.is_set()
            over = interrupted or ended or t == last
            if store is not None and (over or store.due()):
                history.append(_join(unsaved))
                unsaved = []
                kept = jax.tree.map(lambda x: x[:members], states)
                seconds = time.perf_counter() - begin - compile_seconds
                store.save(t, kept, history[-1], _score(history), seconds)
            if over:
                break

    joined = _join([*history, *unsaved])
    taken = joined["env_steps"] >= 0
    env_steps = np.where(taken, joined["env_steps"], np.nan)
    kept_rows = taken.any(axis=0)
    before = 0 if saved is not None else first  # iterations that no history tells of
    return Trained(
        agents,
        jax.tree.map(lambda x: x[:members], states),
        {
            name.removeprefix("metrics/"): values[:, kept_rows]
            for name, values in joined.items()
            if name.startswith("metrics/")
        },
        env_steps[:, kept_rows],
        before + taken.sum(axis=1),
        {
            "env_steps": joined.get("evaluation_steps", np.zeros((members, 0))),
            "returns": joined.get("evaluation_returns", np.zeros((members, 0, episodes))),
        },
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


def _join(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays (members, n, ...) of pieces of a run, one after the other; not all have all."""
    names = {name: None for piece in pieces for name in piece}
    return {
        name: np.concatenate([piece[name] for piece in pieces if name in piece], axis=1)
        for name in names
    }


def _score(history: list[dict[str, np.ndarray]]) -> float:
    """The members' mean return of late: of the newest evaluation, else of training episodes."""
    for piece in reversed(history):
        if "evaluation_returns" in piece:
            return _mean(piece["evaluation_returns"][:, -1])
    return _mean(history[-1].get("metrics/episode_return", np.full(1, np.nan)))


def _identity(agents: Any, seeds: list[int]) -> dict[str, Any]:
    """What a checkpoint belongs to: all that the members' runs follow from, but their length."""
    fields: dict[str, Any] = {}
    for h in agents.hyperparameters():
        value = getattr(agents, h.name)
        fields[h.name] = np.asarray(value).tolist() if h.kind == "traced" else value
    del fields["total_steps"]
    recorded = getattr(agents, "data", None)
    return fields | {
        "agent": agents.name,
        "environment": agents.env.name,
        "environment parameters": checksum(agents.env_params),
        "recorded data": None if recorded is None else checksum(recorded),
        "seeds": seeds,
    }


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM finish the chunk under way and keep what was computed; again, they end it.

    SIGTERM is what clusters send before they kill.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
