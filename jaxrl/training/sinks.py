"""Where the progress of a run goes while it runs: JSON lines, TensorBoard, Weights & Biases.

Each is a callback: `jaxrl.train(agent, callbacks=[jaxrl.sinks.JsonLines(path)])`. TensorBoard takes
one member, or the members' means; Weights & Biases a run for each member. What a search changes
while it runs, the survivors of successive halving or the values of population-based training, is a
scalar too, `hyperparameters/NAME`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl import files
from jaxrl.training.callbacks import Callback, Progress
from jaxrl.training.search import plain

MOST_RUNS = 100  # of Weights & Biases, for the members of one sweep


class JsonLines(Callback):
    """A line of JSON for each chunk, appended at once: readable while the run goes on.

    A line has `batch` (which of a sweep's, from 0), how many `members` it has, `iteration`,
    `env_steps` of all of them, `seconds`, and the means of all metrics over members, null where
    there is none. Where a search changes hyper-parameters while it runs, also the members'
    `numbers` in the table and their `hyperparameters`, a list of values for each name.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __call__(self, progress: Progress, states: Any | None) -> None:
        line: dict[str, Any] = {
            "batch": progress.batch,
            "members": len(progress.members),
            "iteration": progress.iteration,
            "env_steps": progress.env_steps,
            "seconds": round(progress.seconds, 3),
            **{k: v if math.isfinite(v) else None for k, v in progress.metrics.items()},
        }
        if progress.hyperparameters:
            values = {k: [plain(v) for v in x] for k, x in progress.hyperparameters.items()}
            line |= {"numbers": list(progress.members), "hyperparameters": values}
        with files.appending(self.path) as file:
            print(json.dumps(line), file=file)


class TensorBoard(Callback):
    """Scalars over a member's environment steps, as TensorBoard's event files in `folder`.

    `member` is a number of the sweep's table; None: means over the members of each batch, whose
    curves are told apart by its number; of hyper-parameters that a search changes the lowest, the
    median and the highest, and how many members are left.

    Raises: ValueError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, member: int | None = None) -> None:
        writer = _needed("tensorboardX", "tensorboard").SummaryWriter
        self.folder, self.member, self.writer = folder, member, writer
        self.writers: dict[int, Any] = {}

    def __call__(self, progress: Progress, states: Any | None) -> None:
        scalars = _scalars(progress, self.member)
        if not scalars:
            return
        batch = progress.batch
        if batch not in self.writers:
            self.writers[batch] = self.writer(str(self.folder / str(batch)))
        for name, value in scalars.items():
            self.writers[batch].add_scalar(name, value, _steps(progress))
        self.writers[batch].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb(Callback):
    """Scalars over each member's environment steps, as runs of Weights & Biases: one per member.

    The runs of a sweep are one group, where Weights & Biases averages over whatever they share.

    Args:
        project, config: as `wandb.init` takes them; `options` are more of its arguments. With
            `mode="offline"`, or WANDB_MODE=offline, nothing is sent.
        member: a number of the sweep's table: a run for this member alone.
        table: what sets each member apart, as a population's `table` has it; it joins the member's
            `config`. The runs are then begun at once, otherwise with the first chunk.
        id: what the runs' ids begin with. A resumed sweep with the same id goes on with the same
            runs; None: new ones.

    Raises: ValueError where wandb is not installed, or the table has more than MOST_RUNS members.
    """

    def __init__(
        self,
        project: str,
        config: Mapping[str, Any] | None = None,
        member: int | None = None,
        *,
        table: Sequence[Mapping[str, Any]] = (),
        id: str | None = None,
        **options: Any,
    ) -> None:
        self.wandb = _needed("wandb", "wandb")
        if member is None and len(table) > MOST_RUNS:
            raise ValueError(
                f"Weights & Biases: {len(table):,} members are too many for a run each (at most "
                f"{MOST_RUNS}); choose one (member=I, --log-member I)"
            )
        self.project, self.config, self.member = project, dict(config or {}), member
        self.id, self.options = id or secrets.token_hex(4), options
        self.runs: dict[int, Any] = {}
        for number, row in enumerate(table):
            if member in (None, number):
                self._begin(number, row)

    def _begin(self, number: int, row: Mapping[str, Any]) -> None:
        """Begin the run of a member, or go on with the one of its id. The first one says where."""
        settings = self.wandb.Settings(silent=bool(self.runs), console="off")
        arguments = {
            "id": f"{self.id}-{number}",
            "name": " ".join(f"{name}={value}" for name, value in row.items()),
            "group": self.id,
            "resume": "allow",
            "reinit": "create_new",
            "settings": settings,
        }
        run = self.wandb.init(
            project=self.project,
            config={**self.config, **row, "member": number},
            **(arguments | self.options),
        )
        run.define_metric("*", step_metric="env_steps")
        self.runs[number] = run

    def __call__(self, progress: Progress, states: Any | None) -> None:
        for row, number in enumerate(progress.members):
            if self.member not in (None, number):
                continue
            if number not in self.runs:
                self._begin(number, {"seed": progress.seeds[row]} if progress.seeds else {})
            if scalars := _scalars(progress, number):
                self.runs[number].log({"env_steps": _steps(progress), **scalars})

    def close(self) -> None:
        for run in self.runs.values():
            run.finish()


def _scalars(progress: Progress, member: int | None) -> dict[str, float]:
    """Finite values of one member, none where it is not among those training; or the means."""
    if member is None:
        values = progress.metrics | _spread(progress)
    elif member not in progress.members:
        return {}
    else:
        row = progress.members.index(member)
        values = {name: float(x[row]) for name, x in progress.by_member.items()}
        for name, column in progress.hyperparameters.items():
            values[f"hyperparameters/{name}"] = float(column[row])
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _spread(progress: Progress) -> dict[str, float]:
    """How far the hyper-parameters of a search lie apart, and of how many members."""
    values: dict[str, float] = {}
    for name, column in progress.hyperparameters.items():
        values["members"] = float(len(column))
        for which, of in (("lowest", np.min), ("median", np.median), ("highest", np.max)):
            values[f"hyperparameters/{name}/{which}"] = float(of(np.asarray(column, float)))
    return values


def _steps(progress: Progress) -> int:
    """Environment steps of one member."""
    return progress.env_steps // len(progress.members)


def _needed(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{module} is not installed: pip install -e '.[{extra}]'") from None
