"""Run folders: all that is needed to repeat a run, and all that it gave.

    config.json    agent, environment, hyper-parameters, settings, seeds, versions, device, commit
    metrics.npz    arrays over (members, iterations), NaN where a member has no such iteration:
                   `env_steps` (taken by the end of the iteration) and each of the agent's metrics;
                   `final_returns` and `final_lengths` (members, episodes) of the final evaluation;
                   `evaluation_steps` (members, k) and `evaluation_returns` (members, k, episodes)
                   of those during training, where there were any
    checkpoints/   the whole state of all members (`jaxrl.training.checkpoint`), a folder for each group of
                   equal structure: what the run goes on from, and its agents in the end
    log.jsonl      means over members, a line for each chunk, written while the run goes on
    summary.json   final returns per member and per setting, environment steps, seconds
    curve.png      learning curves

Members are numbered as in `members` of summary.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import agents
import envs_jax
from envs_jax import datasets
from experiments.command.launch import Experiment, build
from jaxrl.training import checkpoint
from jaxrl.agent import Agent
from jaxrl.training.evaluate import Evaluation
from jaxrl.report.stats import mean_ci
from jaxrl import Population

CHECKPOINTS = "checkpoints"
PACKAGES = [
    "jaxrl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "gymnax",
    "brax",
    "mujoco-mjx",
    "orbax-checkpoint",
    "numpy",
    "scipy",
]


@contextlib.contextmanager
def new(folder: Path) -> Iterator[None]:
    """The folder of a new run, taken away again if it fails before anything is saved.

    Raises: ValueError where it already holds a run or anything else, or cannot be written.
    """
    try:
        if (folder / "config.json").exists():
            raise ValueError(f"{folder} already holds a run: choose another --out")
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: choose another --out")
        (folder / "config.json").touch()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        yield
    except BaseException:
        if not any((folder / CHECKPOINTS).glob("*/[0-9]*")):
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            (folder / "log.jsonl").unlink(missing_ok=True)
            (folder / "config.json").unlink()
            if not there:
                folder.rmdir()
        raise


def config_of(
    experiment: Experiment, command: str, evaluations: int, episodes: int
) -> dict[str, Any]:
    """Everything needed to repeat the run, or to go on with it."""
    agent = experiment.agent
    return {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "agent": experiment.agent_name,
        "env": experiment.env_id,
        "env_options": experiment.env_options,
        "env_params": _scalars(agent.env_params),
        "hyperparameters": hyperparameters(agent),
        "settings": experiment.settings,
        "seeds": experiment.seeds,
        "data": experiment.data,
        "evaluations": evaluations,
        "episodes": episodes,
        "recipe": experiment.recipe.name if experiment.recipe else None,
        "versions": {"python": platform.python_version()} | _versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "git_commit": _git_commit(),
    }


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    _write_json(folder / "config.json", config)


def resume(folder: Path, steps: int | None, command: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a folder whose run is to go on, and its configuration as it is now.

    `steps` is a new, larger number of steps in all.

    Raises: ValueError where the folder is no run, or nothing is left to do.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{folder} is not a run: it has no config.json") from None
    if "evaluations" not in config:
        raise ValueError(f"{folder} was written by another version of jaxrl: it cannot go on")
    values = config["hyperparameters"]
    done = False
    with contextlib.suppress(OSError, json.JSONDecodeError):
        done = not json.loads((folder / "summary.json").read_text())["interrupted"]
    if steps is None and done:
        raise ValueError(f"{folder} is finished: give --steps N, more than it has, to go on")
    if steps is not None:
        if any("total_steps" in setting for setting in config["settings"]):
            raise ValueError(f"--steps {steps}: {folder} sweeps total_steps")
        if steps <= values["total_steps"]:
            raise ValueError(f"--steps {steps}: {folder} has {values['total_steps']} already")
        values["total_steps"] = steps
    config.setdefault("resumed", []).append(command)
    cls: Any = agents.get(config["agent"])
    env, env_params = envs_jax.make(config["env"], **config["env_options"])
    recording = None
    if config["data"] is not None:
        recording = datasets.read(config["data"], env, env_params)
        values = values | {"data": recording.dataset(env, env_params)}
    experiment = Experiment(
        config["agent"],
        config["env"],
        config["env_options"],
        _agent(cls, env, env_params, config, values),
        [_settings_from_json(cls, setting) for setting in config["settings"]],
        config["seeds"],
        None,
        config["data"],
        recording,
    )
    return experiment, config


def _agent(cls: Any, env: Any, env_params: Any, config: Any, values: Mapping[str, Any]) -> Agent:
    env_values = {f"env.{k}": v for k, v in config["env_params"].items()}
    return build(cls, env, env_params, env_values | _settings_from_json(cls, values))


def _settings_from_json(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {h.name: h.type for h in cls.hyperparameters()}
    return {k: _from_json(v, kinds[k]) if k in kinds else v for k, v in values.items()}


def hyperparameters(agent: Agent) -> dict[str, Any]:
    """All hyper-parameters of an agent whose values are concrete."""
    return {h.name: getattr(agent, h.name) for h in agent.hyperparameters()}


def save(
    folder: Path, experiment: Experiment, population: Population, evaluation: Evaluation
) -> dict[str, Any]:
    """Write metrics and summary of a population that has been trained and evaluated.

    Returns the summary.
    """
    final = {"final_returns": evaluation.returns, "final_lengths": evaluation.lengths}
    arrays: dict[str, Any] = {"env_steps": population.history.env_steps, **population.history.metrics, **final}
    if population.history.evaluations["returns"].shape[1]:
        arrays["evaluation_steps"] = population.history.evaluations["env_steps"]
        arrays["evaluation_returns"] = population.history.evaluations["returns"]
    np.savez_compressed(folder / "metrics.npz", **arrays)
    summary = summarise(experiment, population, evaluation)
    _write_json(folder / "summary.json", summary)
    return summary


def summarise(
    experiment: Experiment, population: Population, evaluation: Evaluation
) -> dict[str, Any]:
    """The content of summary.json. An interval of fewer than two members is [null, null].

    A member whose loss or parameters were not finite has the iteration in "diverged_at", null for
    a return, and no part in any mean.

    Where agents were evaluated during training, "best" values are those of each member's best
    evaluation, beside those of its final policy. Where the data's reference returns are known,
    "score" values are normalised by them, 0 for a random policy and 100 for an expert.
    """
    final = np.asarray(evaluation.returns).mean(axis=1)
    values = {"": final}
    during = np.asarray(population.history.evaluations["returns"]).mean(axis=2)
    if during.shape[1]:
        values["best_"] = np.fmax(np.nanmax(during, axis=1), final)
    for name, returns in list(values.items()):
        scores = None if experiment.recording is None else experiment.recording.score(returns)
        if scores is not None:
            values[f"{name}score_"] = scores
    overrides = [{k: v for k, v in row.items() if k != "seed"} for row in population.table]
    base = hyperparameters(experiment.agent)
    mean, *interval = map(float, mean_ci(final))
    settings: list[dict[str, Any]] = []
    for setting in experiment.settings:
        rows = [i for i, row in enumerate(overrides) if row == setting]
        if rows:
            entry: dict[str, Any] = {"hyperparameters": setting, "members": rows}
            for name, of_members in values.items():
                center, *around = map(float, mean_ci(of_members[rows]))
                entry |= {f"{name}mean": center, f"{name}ci95": around}
            settings.append(entry)
    env_steps = float(np.nansum(np.nanmax(population.history.env_steps, axis=1)))
    return {
        "data": experiment.data,
        "final_return_mean": mean,
        "final_return_ci95": interval,
        "episodes_per_member": evaluation.returns.shape[1],
        "unfinished_episodes": int((~np.asarray(evaluation.finished)).sum()),
        "env_steps": int(env_steps),
        "env_steps_per_second": env_steps / population.run_seconds,
        "compile_seconds": population.compile_seconds,
        "run_seconds": population.run_seconds,
        "interrupted": population.interrupted,
        "best": max(settings, key=lambda s: -np.inf if np.isnan(s["mean"]) else s["mean"]),
        "settings": settings,
        "members": [
            {
                "hyperparameters": base | row,
                "seed": table["seed"],
                "final_return": value,
                "diverged_at": None if np.isnan(diverged_at) else int(diverged_at),
            }
            for row, table, value, diverged_at in zip(
                overrides, population.table, final, population.history.diverged_at, strict=True
            )
        ],
        "checkpoints": [rows for rows, _ in population.batches],
    }


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A finished run as it lies on disk."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    def metrics(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "metrics.npz") as arrays:
            return dict(arrays)

    def setting(self, member: int) -> dict[str, Any]:
        """What sets one member apart from the others, but for its seed."""
        settings = self.summary["settings"]
        return next(s["hyperparameters"] for s in settings if member in s["members"])

    def agent(self, member: int) -> Agent:
        """The agent of one member."""
        config = self.config
        cls: Any = agents.get(config["agent"])
        env, env_params = envs_jax.make(config["env"], **config["env_options"])
        values = self.summary["members"][member]["hyperparameters"]
        if config.get("data"):  # only its shapes matter for what has been trained
            values = values | {"data": datasets.blank(env, env_params).dataset(env, env_params)}
        return _agent(cls, env, env_params, config, values)

    def members(self, only: int | None = None) -> Iterator[tuple[int, Agent, Any]]:
        """Number, agent and final state of each member, or of one.

        Raises: ValueError where there is no such member.
        """
        if "checkpoints" not in self.summary:
            raise ValueError(f"{self.path} was written by another version of jaxrl")
        count = len(self.summary["members"])
        if only is not None and not 0 <= only < count:
            raise ValueError(f"member {only} is outside 0..{count - 1} of {self.path}")
        wanted = range(count) if only is None else [only]
        for item, rows in enumerate(self.summary["checkpoints"]):
            if not set(rows) & set(wanted):
                continue
            states = self._restore(item, rows)
            for place, i in enumerate(rows):
                if i in wanted:
                    state = jax.tree.map(lambda x, place=place: x[place], states)
                    yield i, self.agent(i), state

    def _restore(self, item: int, rows: list[int]) -> Any:
        agent = self.agent(rows[0])
        keys = jax.eval_shape(jax.vmap(jax.random.key), np.zeros(len(rows), np.uint32))
        like = jax.eval_shape(jax.vmap(agent.init), keys)
        return checkpoint.read(self.path / CHECKPOINTS / str(item), like).states


def open_run(folder: Path) -> RunFolder:
    """A finished run. Raises: ValueError where the folder is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
        summary = json.loads((folder / "summary.json").read_text())
        return RunFolder(folder, config, summary)
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{folder} is not a run: it has no config.json and summary.json") from None


def _scalars(env_params: Any) -> dict[str, Any]:
    """The single numbers among environment parameters; 9.8 for the float32 nearest to 9.8."""
    values = {f.name: getattr(env_params, f.name) for f in dataclasses.fields(env_params)}
    arrays = {k: np.asarray(v) for k, v in values.items() if np.ndim(v) == 0}
    return {
        k: float(str(v)) if v.dtype.kind == "f" else v.item()
        for k, v in arrays.items()
        if v.dtype.kind in "fiub"
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _git_commit() -> str | None:
    """The commit of the work tree this runs from, `-dirty` where files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whose lists of objects have one object a line."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
        if isinstance(value, dict):
            return json.dumps(value, indent=2).replace("\n", "\n  ")
        return json.dumps(value)

    lines = [f"  {json.dumps(key)}: {text(_to_json(value))}" for key, value in content.items()]
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    part.replace(path)  # whole or not at all


def _to_json(value: Any) -> Any:
    """Standard JSON has no tuples, no infinities and no NaN: lists, "inf" and null."""
    if isinstance(value, Mapping):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _to_json(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


def _from_json(value: Any, kind: type) -> Any:
    if kind is tuple:
        return tuple(value)
    return float(value) if kind is float else value
