"""Where the progress of a run goes while it runs: JSON lines, TensorBoard, Weights & Biases.

A sink is called with each `Progress`: pass it to `jaxrl.train` or `jaxrl.sweep` as `progress`, or
several as `Sinks([...])`. TensorBoard and Weights & Biases take one member, or the members' means.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxrl.training.population import Progress

Sink = Callable[[Progress], None]


class Sinks:
    """Several sinks as one.

    One that cannot write, on a full disk, is warned of and called no more: the run goes on.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self.sinks = list(sinks)

    def __call__(self, progress: Progress) -> None:
        for sink in list(self.sinks):
            try:
                sink(progress)
            except OSError as error:
                self.sinks.remove(sink)
                warnings.warn(f"{type(sink).__name__} ends here: {error}", stacklevel=2)

    def close(self) -> None:
        """Close those of them that can be closed."""
        for sink in self.sinks:
            if hasattr(sink, "close"):
                sink.close()


class JsonLines:
    """A line of JSON for each chunk, appended at once: readable while the run goes on.

    A line has `program` (which of a sweep's, from 0), how many `members` it has, `iteration`,
    `env_steps` of all of them, `seconds`, and the means of all metrics over members, null where
    there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, progress: Progress) -> None:
        line = {
            "program": progress.program,
            "members": len(progress.rows),
            "iteration": progress.iteration,
            "env_steps": progress.env_steps,
            "seconds": round(progress.seconds, 3),
            **{k: v if math.isfinite(v) else None for k, v in progress.metrics.items()},
        }
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)


class TensorBoard:
    """Scalars over a member's environment steps, as TensorBoard's event files in `folder`.

    `member` is a number of the sweep's table; None: means over the members of each program, whose
    curves are told apart by its number.

    Raises: ValueError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path, member: int | None = None) -> None:
        writer = _needed("tensorboardX", "tensorboard").SummaryWriter
        self.folder, self.member, self.writer = folder, member, writer
        self.writers: dict[int, Any] = {}

    def __call__(self, progress: Progress) -> None:
        scalars = _scalars(progress, self.member)
        if not scalars:
            return
        program = progress.program
        if program not in self.writers:
            self.writers[program] = self.writer(str(self.folder / str(program)))
        for name, value in scalars.items():
            self.writers[program].add_scalar(name, value, _steps(progress))
        self.writers[program].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb:
    """Scalars over a member's environment steps, as a run of Weights & Biases.

    Args:
        project, config: as `wandb.init` takes them; `options` are more of its arguments. With
            `mode="offline"`, or WANDB_MODE=offline, nothing is sent.
        member: a number of the sweep's table; None: means over the members of each program, named
            "PROGRAM/metric" but for the first.

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

    def __call__(self, progress: Progress) -> None:
        scalars = _scalars(progress, self.member)
        before = "" if progress.program == 0 or self.member is not None else f"{progress.program}/"
        if scalars:
            named = {before + name: value for name, value in scalars.items()}
            self.run.log({"env_steps": _steps(progress), **named})

    def close(self) -> None:
        self.run.finish()


def _scalars(progress: Progress, member: int | None) -> dict[str, float]:
    """Finite values of one member, none where it is not among those training; or the means."""
    values = progress.metrics
    if member is not None:
        if member not in progress.rows:
            return {}
        row = progress.rows.index(member)
        values = {name: float(x[row]) for name, x in progress.by_member.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _steps(progress: Progress) -> int:
    """Environment steps of one member."""
    return progress.env_steps // len(progress.rows)


def _needed(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{module} is not installed: pip install 'jaxrl[{extra}]'") from None
