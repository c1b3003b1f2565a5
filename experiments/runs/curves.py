"""Figures of run folders: learning curves, and what a sweep found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.runs.folder import RunFolder
from jaxrl.report import plots, sweeps
from jaxrl.report.results import Setting, curves_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_run(folder: RunFolder, name: str = "") -> list[plots.Curve]:
    """A run's learning curves, one per setting; `name` goes before the setting in their labels.

    Returns of training episodes; where there are none, of evaluations during training.

    Raises: ValueError where there are neither.
    """
    metrics = folder.metrics()
    during = {"env_steps": "evaluation_steps", "returns": "evaluation_returns"}
    evaluations = {name: metrics[stored] for name, stored in during.items() if stored in metrics}
    settings = [Setting(s["hyperparameters"], s["members"]) for s in folder.listing["settings"]]
    try:
        return curves_of(settings, metrics["steps"], metrics, evaluations, name)
    except ValueError as error:
        raise ValueError(f"{folder.path}: {error} (--evaluations)") from None


def draw(folders: list[RunFolder], out: Path) -> None:
    """The curves of one run, or of several over each other, as the figure `out`.

    Raises: ValueError where `out` cannot be written, or its ending is not a known figure format.
    """
    several = len(folders) > 1
    curves = [c for f in folders for c in of_run(f, f.path.resolve().name if several else "")]
    subjects = {f"{f.config['agent']} on {f.config['env']}" for f in folders}
    title = subjects.pop() if len(subjects) == 1 else ""
    unit = " or ".join(sorted({f.unit for f in folders}))
    labels = plots.labels_of(all("episode_return" in f.metrics() for f in folders), unit)
    save(plots.learning_curves(curves, title=title, **labels), out)


def draw_sweep(folder: RunFolder, out: Path) -> bool:
    """Final returns of a run over what it varied, as the figure `out`; whether there was anything.

    There is nothing in a run of one setting, or in one that has not ended.

    Raises: ValueError where `out` cannot be written, or its ending is not a known figure format.
    """
    listing = folder.listing
    settings = [setting["hyperparameters"] for setting in listing["settings"]]
    if not folder.has_ended or not settings or not sweeps.varied(settings):
        return False
    final = np.asarray([member["final_return"] for member in listing["members"]], dtype=float)
    returns = [final[setting["members"]] for setting in listing["settings"]]
    title = f"{folder.config['agent']} on {folder.config['env']}"
    save(sweeps.sweep_figure(settings, returns, title=title), out)
    return True


def save(figure: Figure, out: Path) -> None:
    try:
        plots.save(figure, out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
