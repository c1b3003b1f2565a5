"""Learning curves of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.command.report import setting_text
from experiments.runs.runs import RunFolder
from jaxrl.report import plots


def of_run(folder: RunFolder, name: str = "") -> list[plots.Curve]:
    """A run's learning curves, one a setting; `name` goes before the setting in their labels.

    Returns of training episodes; where there are none, of evaluations during training.
    """
    metrics = folder.metrics()

    def curve(setting: dict[str, Any]) -> plots.Curve:
        rows, changes = setting["members"], setting["hyperparameters"]
        label = " ".join(filter(None, [name, setting_text(changes)]))
        if "episode_return" in metrics:
            keys = ("env_steps", "episode_return", "episodes")
            return plots.Curve(
                label, *plots.bin_episodes(*(metrics[k][rows] for k in keys)), changes
            )
        if "evaluation_returns" not in metrics:
            raise ValueError(f"{folder.path} has no returns to draw: give it --evaluations")
        steps = np.nanmax(metrics["evaluation_steps"][rows], axis=0)
        return plots.Curve(label, steps, metrics["evaluation_returns"][rows].mean(axis=2), changes)

    return [curve(setting) for setting in folder.summary["settings"]]


def draw(folders: list[RunFolder], out: Path) -> None:
    """The curves of one run, or of several over each other, as the figure `out`.

    Raises: ValueError where `out` cannot be written, or its ending is no known format of figures.
    """
    several = len(folders) > 1
    curves = [c for f in folders for c in of_run(f, f.path.resolve().name if several else "")]
    subjects = {f"{f.config['agent']} on {f.config['env']}" for f in folders}
    title = subjects.pop() if len(subjects) == 1 else ""
    offline = any(f.config.get("data") for f in folders)
    labels = {"xlabel": "gradient steps", "ylabel": "return of evaluations"} if offline else {}
    try:
        plots.save(plots.learning_curves(curves, title=title, **labels), out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
