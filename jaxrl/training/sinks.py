"""Where the progress of a run goes while it runs: JSON lines, TensorBoard, Weights & Biases.

Each is a callback: `jaxrl.train(agent, callbacks=[jaxrl.sinks.JsonLines(path)])`. TensorBoard and
Weights & Biases take one member, or the members' means.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jaxrl import files
from jaxrl.training.callbacks import Callback, Progress


class JsonLines(Callback):
    """A line of JSON for each chunk, appended at once: readable while the run goes on.

    A line has `batch` (which of a sweep's, from 0), how many `members` it has, `iteration`,
    `env_steps` of all of them, `seconds`, and the means of all metrics over members, null where
    there is none.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __call__(self, progress: Progress, states: Any | None) -> None:
        line = {
            "batch": progress.batch,
            "members": len(progress.members),
            "iteration": progress.iteration,
            "env_steps": progress.env_steps,
            "seconds": round(progress.seconds, 3),
            **{k: v if math.isfinite(v) else None for k, v in progress.metrics.items()},
        }
        with files.appending(self.path) as file:
            print(json.dumps(line), file=file)


class TensorBoard(Callback):
    """Scalars over a member's environment steps, as TensorBoard's event files in `folder`.

    `member` is a number of the sweep's table; None: means over the members of each batch, whose
    curves are told apart by its number.

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
    """Scalars over a member's environment steps, as a run of Weights & Biases.

    Args:
        project, config: as `wandb.init` takes them; `options` are more of its arguments. With
            `mode="offline"`, or WANDB_MODE=offline, nothing is sent.
        member: a number of the sweep's table; None: means over the members of each batch, named
            "BATCH/metric" but for the first.

    Raises: ValueError where wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        config: dict[str, Any] | None = None,
        member: int | None = None,
        **options: Any,
    ) -> None:
        self.member = member
        self.run = _needed("wandb", "wandb").init(project=project, config=config, **options)
        self.run.define_metric("*", step_metric="env_steps")

    def __call__(self, progress: Progress, states: Any | None) -> None:
        scalars = _scalars(progress, self.member)
        before = "" if progress.batch == 0 or self.member is not None else f"{progress.batch}/"
        if scalars:
            named = {before + name: value for name, value in scalars.items()}
            self.run.log({"env_steps": _steps(progress), **named})

    def close(self) -> None:
        self.run.finish()


def _scalars(progress: Progress, member: int | None) -> dict[str, float]:
    """Finite values of one member, none where it is not among those training; or the means."""
    values = progress.metrics
    if member is not None:
        if member not in progress.members:
            return {}
        row = progress.members.index(member)
        values = {name: float(x[row]) for name, x in progress.by_member.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _steps(progress: Progress) -> int:
    """Environment steps of one member."""
    return progress.env_steps // len(progress.members)


def _needed(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{module} is not installed: pip install -e '.[{extra}]'") from None
