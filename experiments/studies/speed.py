"""Training steps per second beside rejax and Brax, and beside nothing but the run's products.

Each side of a row runs in a process of its own that compiles once. Then the sides take turns, so
that whatever else the machine does disturbs all of them alike; a row's figure is the median over
rounds of the ratio of their times. Rows are on one core unless they say so. `products` has the
floor: the time that a run's matrix products need by themselves on the same core.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 5
SMALL = {"hidden_sizes": [64, 64]}
PPO = SMALL | {"num_steps": 128, "num_epochs": 4, "num_minibatches": 4}
REPLAY = {"num_envs": 8, "num_steps": 1, "num_updates": 8, "learning_starts": 8}

SUMS = {"num_prompts": 64, "group_size": 8, "pretraining_steps": 0}  # steps are answers

CNN = {"network": "cnn", "hidden_sizes": [128]}
HOPPER = PPO | {"num_envs": 256, "num_steps": 32}

# Settings of each row, and how many times the steps per second of its last side are aimed at.
ROWS: dict[str, tuple[dict[str, Any], float]] = {
    "ppo_cartpole_4": (
        {"agent": "ppo", "env": "CartPole-v1", "steps": 499_712, "values": PPO | {"num_envs": 4}},
        1.3,
    ),
    "ppo_cartpole_64": (
        {"agent": "ppo", "env": "CartPole-v1", "steps": 491_520, "values": PPO | {"num_envs": 64}},
        1.6,
    ),
    "ppo_breakout": (
        {
            "agent": "ppo",
            "env": "Breakout-MinAtar",
            "steps": 131_072,
            "values": PPO | {"num_envs": 64},
        },
        1.5,
    ),
    "ppo_breakout_cnn": (
        {
            "agent": "ppo",
            "env": "Breakout-MinAtar",
            "steps": 16_384,
            "values": PPO | {"num_envs": 64} | CNN,
            "sides": ["train", "fused", "floor"],
        },
        0.6,
    ),
    "ppo_hopper": (
        {
            "agent": "ppo",
            "env": "brax/hopper",
            "steps": 131_072,
            "values": HOPPER,
            "sides": ["train", "brax", "rejax"],  # each takes a minute or more to compile
        },
        1.4,
    ),
    "pqn_cartpole": (
        {
            "agent": "pqn",
            "env": "CartPole-v1",
            "steps": 262_144,
            "values": SMALL
            | {"num_envs": 32, "num_steps": 64, "num_epochs": 4, "num_minibatches": 16},
        },
        1.6,
    ),
    "pqn_breakout_cnn": (
        {
            "agent": "pqn",
            "env": "Breakout-MinAtar",
            "steps": 16_384,
            "values": CNN | {"num_envs": 128, "num_steps": 32},
            "sides": ["train", "fused", "floor"],
        },
        0.6,
    ),
    "sac_pendulum": (
        {"agent": "sac", "env": "Pendulum-v1", "steps": 256, "values": REPLAY},
        1.3,
    ),
    "cql_pendulum": (
        {
            "agent": "cql",
            "env": "Pendulum-v1",
            "steps": 16,
            "values": REPLAY | {"hidden_sizes": [256, 256, 256]},
            "sides": ["train", "fused", "floor"],
        },
        0.6,
    ),
    "sac_pendulum_bfloat16": (
        {
            "agent": "sac",
            "env": "Pendulum-v1",
            "steps": 256,
            "values": REPLAY | {"precision": "bfloat16"},
            "sides": ["train", "float32", "rejax"],
        },
        1.8,
    ),
    "cql_pendulum_bfloat16": (
        {
            "agent": "cql",
            "env": "Pendulum-v1",
            "steps": 16,
            "values": REPLAY | {"hidden_sizes": [256, 256, 256], "precision": "bfloat16"},
            "sides": ["train", "float32"],
        },
        1.8,
    ),
    "dqn_cartpole": (
        {"agent": "dqn", "env": "CartPole-v1", "steps": 4_000, "values": SMALL | REPLAY},
        2.0,
    ),
    "grpo_gru": (
        {
            "agent": "grpo",
            "env": "sequences/sum",
            "steps": 10_240,
            "values": SUMS | {"network": "gru"},
            "sides": ["train", "fused", "floor"],
        },
        0.6,
    ),
    "grpo_transformer": (
        {
            "agent": "grpo",
            "env": "sequences/sum",
            "steps": 10_240,
            "values": SUMS | {"network": "transformer"},
            "sides": ["train", "fused", "floor"],
        },
        0.6,
    ),
    "grpo_64": (
        {
            "agent": "grpo",
            "env": "sequences/sum",
            "steps": 5_120,
            "values": SUMS,
            "rates": 16,
            "seeds": 4,
            "sides": ["sweep", "sweep_one_device", "train"],
            "cores": 2,
            "rounds": 3,
        },
        2.0,
    ),
    "sweep_64": (
        {
            "agent": "ppo",
            "env": "CartPole-v1",
            "steps": 49_152,
            "values": PPO | {"num_envs": 4},
            "rates": 16,
            "seeds": 4,
            "sides": ["sweep", "sweep_one_device", "rejax_sweep"],
            "cores": 2,
            "rounds": 3,
        },
        2.2,
    ),
}
QUICK = {
    "ppo_cartpole_4": {
        "steps": 64,
        "values": {"num_steps": 4, "num_envs": 4},
        "sides": ["train", "floor", "fused"],
    },
}


class Speed(study.Study):
    name = "speed"
    title = "Training steps per second"
    paper = "Beside rejax 0.1.3 (Liesen et al. 2024), by sizes and hyper-parameters that both have."
    question = (
        "How much faster than rejax does the same work run here, on the same machine, and what "
        "share of it is matrix products?"
    )
    budget = "16 rows, five rounds each: 25 to 35 minutes on two cores (`make bench`)"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        full = {name: DEFAULTS | settings for name, (settings, _) in ROWS.items()}
        if scale == "full":
            return full
        return {name: full[name] | {"rounds": 2} | changes for name, changes in QUICK.items()}

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        """Raises: ValueError where a side needs a library that is not installed."""
        if "rejax" in str(settings["sides"]) and importlib.util.find_spec("rejax") is None:
            raise ValueError("rejax is not installed: pip install -e '.[bench]', or `make bench`")
        measures: dict[str, list[float]] = {}
        with contextlib.ExitStack() as stack:
            started = [
                (side, stack.enter_context(worker(side, settings))) for side in settings["sides"]
            ]  # one after the other: each waits until the one before is warm
            members = settings.get("rates", 1) * settings.get("seeds", 1)
            for side, process in started:
                measures[f"{side}_compile_seconds"] = [process.first["compile_seconds"]]
                measures[f"{side}_start_seconds"] = [process.first["start_seconds"]]
                measures[f"{side}_steps_per_second"] = []
            for _ in range(settings["rounds"]):
                for side, process in started:
                    runs = members if "sweep" in side else 1
                    rate = runs * settings["steps"] / process.ask()["seconds"]
                    measures[f"{side}_steps_per_second"].append(rate)
            for side, process in started:
                measures[f"{side}_peak_mib"] = [process.end()["peak_mib"]]
        rounded = {name: [float(f"{x:.5g}") for x in values] for name, values in measures.items()}
        return {"measures": rounded, "machine": machine()}

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        columns = ["row", "side", "steps/s", "ours over it", "compile s", "start s", "peak MiB"]
        rows = []
        for name, cell in cells.items():
            measures, (ours, *_) = cell["measures"], cell["settings"]["sides"]
            for side in cell["settings"]["sides"]:
                ratio = ratios(measures, ours, side)
                rows.append(
                    [
                        name,
                        side,
                        rate(np.median(measures[f"{side}_steps_per_second"])),
                        "" if side == ours else spread(ratio),
                        *(
                            f"{measures[f'{side}_{what}'][0]:,.1f}"
                            for what in ("compile_seconds", "start_seconds", "peak_mib")
                        ),
                    ]
                )
        machines = dict.fromkeys(cell.get("machine", "") for cell in cells.values())
        return [study.Table("; ".join(machines), columns, rows)]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"ratios": draw(cells)}

    def claims(self) -> list[Claim]:
        def of_row(name: str) -> Any:
            def intervals(cells: Mapping[str, Any]) -> list[Interval]:
                ours, *_, peer = (DEFAULTS | ROWS[name][0])["sides"]
                try:
                    return [Interval.of(ratios(cells[name], ours, peer))]
                except KeyError:  # a quick row has no peer
                    raise KeyError(name) from None

            return intervals

        return [
            Claim(f"{name}: at least {goal:g} times {of_peer(name)}", of_row(name), goal)
            for name, (_, goal) in ROWS.items()
        ]


def of_peer(name: str) -> str:
    """What a row is held against, in words."""
    peers = {
        "floor": "its matrix products alone",
        "float32": "the same in float32",
        "train": "one run by itself",
    }
    return f"the steps per second of {peers.get((DEFAULTS | ROWS[name][0])['sides'][-1], 'rejax')}"


STUDY = Speed()
DEFAULTS: dict[str, Any] = {
    "sides": ["train", "fused", "floor", "rejax"],
    "cores": 1,
    "rounds": ROUNDS,
}


def ratios(measures: Mapping[str, Sequence[float]], ours: str, side: str) -> np.ndarray:
    """Our steps per second over another side's, in each round."""
    first, second = (np.asarray(measures[f"{x}_steps_per_second"]) for x in (ours, side))
    return first / second


def draw(cells: Mapping[str, Any]) -> Figure:
    """Each row's ratio to its last side: the median, and a line from the least to the largest."""
    from matplotlib.figure import Figure

    names = [name for name in cells if "rejax" in cells[name]["settings"]["sides"][-1]][::-1]
    figure = Figure(figsize=(6.4, 0.7 + 0.4 * len(names)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, cell in enumerate(cells[name] for name in names):
        ours, *_, peer = cell["settings"]["sides"]
        ratio = ratios(cell["measures"], ours, peer)
        axes.plot([ratio.min(), ratio.max()], [place, place], color="tab:blue", linewidth=2)
        axes.plot(np.median(ratio), place, "o", color="tab:blue")
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(xlabel="our steps per second over rejax's", xlim=(0, None))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    return figure


def rate(steps: float) -> str:
    """Steps per second, of which slow rows have few."""
    return f"{steps:,.0f}" if steps >= 100 else f"{steps:.3g}"


def spread(values: np.ndarray) -> str:
    """Median, and the range of all rounds."""
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


class Worker:
    """A side's process: see `speed_worker`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first = self._answer()

    def ask(self) -> dict[str, float]:
        """One run."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side of the row has ended with status {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextlib.contextmanager
def worker(side: str, settings: Mapping[str, Any]) -> Iterator[Worker]:
    """A side's process, warm. Nothing is read from a cache of programs: compiling is timed."""
    job = json.dumps({**settings, "side": side})
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, "-m", "experiments.studies.speed_worker", job]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


def machine() -> str:
    """What ran it, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x for x in lines if x.startswith("model name")).partition(":")[2].strip()
    versions = " ".join(f"{x} {importlib.metadata.version(x)}" for x in ("jax", "gymnax"))
    return f"{os.cpu_count()} x {name}, Python {platform.python_version()}, {versions}"
