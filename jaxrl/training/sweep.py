"""Populations: any mix of hyper-parameters and seeds, one program per static setting."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Agent
from jaxrl.parts.replay import nbytes
from jaxrl.training import hosts
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.members import stack_agents
from jaxrl.training.memory import available, plan
from jaxrl.training.population import (
    Progress,
    Trained,
    evaluate_population,
    run_population,
)
from jaxrl.training.programs import needed_bytes
from jaxrl.training.train import Run, check_on_nan, member


class Lin(NamedTuple):
    """`num` values evenly spaced from low to high; in a random search, uniform between them."""

    low: float
    high: float
    num: int = 1

    def grid(self) -> list[float]:
        return [float(x) for x in np.linspace(self.low, self.high, self.num)]

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


class Log(NamedTuple):
    """`num` values evenly spaced in their logarithm; in a random search, log-uniform."""

    low: float
    high: float
    num: int = 1

    def grid(self) -> list[float]:
        return [float(x) for x in np.geomspace(self.low, self.high, self.num)]

    def sample(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


Space = Mapping[str, Lin | Log | Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Population:
    """What a sweep trained. Members are numbered in the order of `table`.

    Attributes:
        table: a row per member: its overrides and its "seed".
        metrics: name -> (members, iterations), NaN where a member has no such iteration.
        env_steps: steps taken by the end of each iteration (members, iterations), NaN likewise.
        evaluations: "env_steps" (members, k), "returns" (members, k, episodes).
        compile_seconds, run_seconds: time spent compiling, and all the rest.
        diverged_at: iteration after which a member's loss or parameters were not finite (members,),
            NaN where they are. From there on its metrics and returns are NaN, which is "missing".
        interrupted: Ctrl-C, or `on_nan`, stopped it early; `table` then lists the members that ran.
    """

    table: list[dict[str, Any]]
    metrics: dict[str, np.ndarray]
    env_steps: np.ndarray
    evaluations: dict[str, np.ndarray]
    diverged_at: np.ndarray
    compile_seconds: float
    run_seconds: float
    interrupted: bool
    batches: list[tuple[list[int], Trained]]  # members that ran together

    def __len__(self) -> int:
        return len(self.table)

    def whole(self) -> Population:
        """This population; KeyboardInterrupt where it was stopped early. For scripts."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self

    def select(self, i: int) -> Run:
        """Member `i` as an ordinary run: its agent and state act, evaluate and go on training."""
        for rows, trained in self.batches:
            if i in rows:
                return member(trained, rows.index(i))
        raise IndexError(f"member {i} of a population of {len(self)}")

    def evaluate(self, episodes: int = 64, seed: int = 0, deterministic: bool = True) -> Evaluation:
        """Evaluate all members in fresh episodes; arrays (members, episodes).

        Keys follow from each member's root key and `seed`, so a member's figure does not depend on
        who else is in the population.
        """
        parts: list[Any] = [None] * len(self)
        for rows, trained in self.batches:
            result = evaluate_population(trained, episodes, seed, deterministic)
            for j, i in enumerate(rows):
                parts[i] = jax.tree.map(lambda x, j=j: x[j], result)
        return jax.tree.map(lambda *xs: np.stack(xs), *parts)


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values, the first name varying slowest."""
    axes = [v.grid() if isinstance(v, Lin | Log) else list(v) for v in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def random_search(space: Space, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """`num` settings: ranges sampled between their ends, lists by uniform choice."""
    rng = np.random.default_rng(seed)

    def draw(axis: Any) -> Any:
        if isinstance(axis, Lin | Log):
            return axis.sample(rng)
        return axis[int(rng.integers(len(axis)))]

    return [{name: draw(axis) for name, axis in space.items()} for _ in range(num)]


def sweep(
    agent: Agent,
    space: Space | Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    random: int | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    evaluations: int = 0,
    episodes: int = 64,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
    on_nan: str = "report",
    data_parallel: bool = False,
) -> Population:
    """Train every setting with every seed, in one program per distinct static setting.

    Args:
        agent: what the settings override.
        space: name -> values. Names are fields of the agent, traced or static, or `env.NAME` for a
            field of the environment's parameters. Instead, a list of settings, each name -> value,
            or nothing: only seeds.
        seeds: how many (0..n-1), or which.
        random: draw this many settings instead of the grid.
        batch_size: train at most this many members at once, one batch after the other.
        memory: bytes that a program may take on the local devices together; None: what they have.
            Members that do not fit train in the largest batches that do, and the replay memories of
            a batch that is done are not kept but in its checkpoint.
        checkpoints: where to save on the way, a folder within for each batch, from 0. A sweep whose
            folder has checkpoints already goes on from the newest.
        announce: called with a line for each program before anything compiles, and with its memory
            plan before it runs.
        on_nan: a member whose loss or parameters become non-finite is warned of and stays out of
            all statistics, and the others train on ("report"), or the sweep ends there ("stop").

        data_parallel: members train one after the other, the environments of each spread over the
            local devices: for runs that are large, not many.

    Raises:
        ValueError: an unknown name, a value outside its range, an empty axis, no members, an
            unknown `on_nan`, a member that does not fit into memory; checkpoints of another sweep,
            or none that can be read.
    """
    for name, value in (("random", random), ("batch_size", batch_size), ("memory", memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    check_on_nan(on_nan)
    settings = _settings(space, random)
    seed_list = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seed_list:
        raise ValueError(f"seeds={seeds!r}: at least one is needed")
    members = [(override(agent, s), {**s, "seed": x}) for s in settings for x in seed_list]
    groups = _group([a for a, _ in members])
    if announce is not None:
        for number, rows in enumerate(groups, 1):
            fixed = {k: v for k, v in members[rows[0]][1].items() if _is_static(agent, k)}
            setting = "".join(f", {k}={v}" for k, v in fixed.items())
            announce(f"program {number} of {len(groups)}: {len(rows)} members{setting}")

    done: list[tuple[list[int], Trained]] = []
    for group in groups:
        size = 1 if data_parallel else batch_size
        if size is None:
            found = [members[i][0] for i in group]
            size = _fitting(found, evaluations, memory, checkpoints, len(done), announce)
        for start in range(0, len(group), size):
            rows = group[start : start + size]
            trained = run_population(
                stack_agents([members[i][0] for i in rows]),
                [members[i][1]["seed"] for i in rows],
                evaluations,
                episodes,
                progress,
                checkpoints.part(str(len(done))) if checkpoints else None,
                rows=rows,
                program=len(done),
                stop_on_nan=on_nan == "stop",
                data_parallel=data_parallel,
            )
            if batch_size is None and size < len(group):
                trained = trained._replace(states=agent.without_replay(trained.states))
            done.append((rows, trained))
            if trained.interrupted:
                return _population([table for _, table in members], done)
    return _population([table for _, table in members], done)


def override(agent: Agent, changes: Mapping[str, Any]) -> Agent:
    """A copy of the agent with fields, or `env.NAME` parameters, changed and checked.

    Raises:
        ValueError: there is no such field or parameter, or it does not take that value.
    """
    fields = {k: v for k, v in changes.items() if not k.startswith("env.")}
    known = [h.name for h in agent.hyperparameters()]
    for name in fields:
        if name not in known:
            raise ValueError(f"{agent.name} has no hyper-parameter {name!r}; {near(name, known)}")
    params = agent.env_params
    for name, value in changes.items():
        if name.startswith("env."):
            params = override_env_params(params, name[4:], value, agent.env)
    return agent.replace(**fields, env_params=params)


def override_env_params(params: Any, name: str, value: Any, env: Any) -> Any:
    """Environment parameters with one field changed, in that field's own dtype."""
    known = [f.name for f in dataclasses.fields(params)] if dataclasses.is_dataclass(params) else []
    if name not in known:
        raise ValueError(f"{env.name} has no parameter {name!r}; {near(name, known)}")
    old = jnp.asarray(getattr(params, name))
    try:
        fits = np.shape(value) == old.shape and np.allclose(jnp.asarray(value, old.dtype), value)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"env.{name}={value!r} must be {old.dtype} of shape {old.shape}")
    return dataclasses.replace(params, **{name: jnp.asarray(value, old.dtype)})


def near(name: str, known: Sequence[str]) -> str:
    """The end of an error line: the known names nearest to an unknown one."""
    names = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
    return f"did you mean {' or '.join(names)}?" if names else "there are none"


def _settings(space: Any, random: int | None) -> list[dict[str, Any]]:
    if space is None:
        return [{}]
    if not isinstance(space, Mapping):
        if not space:
            raise ValueError("the list of settings is empty")
        return [dict(setting) for setting in space]
    for name, values in space.items():
        empty = values.num < 1 if isinstance(values, Lin | Log) else len(values) == 0
        if empty:
            raise ValueError(f"{name}: the grid is empty")
    return grid(space) if random is None else random_search(space, random)


def _is_static(agent: Agent, name: str) -> bool:
    return any(h.name == name and h.kind == "static" for h in agent.hyperparameters())


def _fitting(
    agents: list[Agent],
    evaluations: int,
    limit: int | None,
    checkpoints: Checkpoints | None,
    number: int,
    announce: Callable[[str], None] | None,
) -> int:
    """How many members of a group train at once. What checkpoints were begun with stands."""
    begun = checkpoints.batch(number) if checkpoints and hosts.is_writer() else None
    begun = hosts.of_writer(begun)
    if begun is not None:
        return int(begun)
    stacked = stack_agents(agents)
    data = getattr(agents[0], "data", None)
    copies = min(len(agents), jax.local_device_count())
    found = plan(
        len(agents),
        lambda n: needed_bytes(stacked, n, evaluations),
        available() if limit is None else limit,
        0 if data is None else nbytes(data) * copies,
    )
    found = hosts.of_writer(found)
    if announce is not None:
        announce(found.line())
    if checkpoints and hosts.is_writer():
        checkpoints.note_batch(number, found.batch)
    return found.batch


def _group(agents: list[Agent]) -> list[list[int]]:
    """Rows of agents that share a program: equal static fields, equal shapes of the traced."""
    groups: dict[Any, list[int]] = {}
    for i, agent in enumerate(agents):
        leaves, structure = jax.tree.flatten(agent)
        groups.setdefault((structure, *map(jnp.shape, leaves)), []).append(i)
    return list(groups.values())


def _population(table: list[dict[str, Any]], done: list[tuple[list[int], Trained]]) -> Population:
    """Put the batches' rows back in order, numbering only the members that ran."""
    ran = sorted(i for rows, _ in done for i in rows)
    number = {i: n for n, i in enumerate(ran)}
    batches = [([number[i] for i in rows], trained) for rows, trained in done]

    def gather(parts: list[np.ndarray]) -> np.ndarray:
        widest = max(part.shape[1] for part in parts)
        whole = np.full((len(ran), widest, *parts[0].shape[2:]), np.nan, parts[0].dtype)
        for (rows, _), part in zip(batches, parts, strict=True):
            whole[rows, : part.shape[1]] = part
        return whole

    runs = [trained for _, trained in done]
    return Population(
        [table[i] for i in ran],
        {k: gather([run.metrics[k] for run in runs]) for k in runs[0].metrics},
        gather([run.env_steps for run in runs]),
        {k: gather([run.evaluations[k] for run in runs]) for k in runs[0].evaluations},
        gather([run.diverged_at[:, None] for run in runs])[:, 0],
        sum(run.compile_seconds for run in runs),
        sum(run.run_seconds for run in runs),
        any(run.interrupted for run in runs),
        batches,
    )
