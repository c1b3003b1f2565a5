"""Figures of run folders: learning curves, and what a sweep found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.runs.folder import RunFolder
from jaxrl.report import plots, schedules, sweeps
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
    search = folder.config["search"] or {}
    settings = [Setting(s["hyperparameters"], s["members"]) for s in folder.listing["settings"]]
    if search.get("method") == "pbt":  # whose members change theirs: no setting is one's own
        settings = [Setting({"member": s.members[0]}, s.members) for s in settings]
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


def draw_found(folder: RunFolder) -> list[Path]:
    """The figures of what a run found, into its folder; those that were drawn.

    Raises: ValueError where one cannot be written.
    """
    found = {"sweep.png": draw_sweep, "schedule.png": draw_schedule}
    paths = {folder.path / name: draw for name, draw in found.items()}
    return [path for path, draw in paths.items() if draw(folder, path)]


def draw_schedule(folder: RunFolder, out: Path) -> bool:
    """Hyper-parameters over the steps of population-based training; whether it was that.

    Raises: ValueError where `out` cannot be written, or its ending is not a known figure format.
    """
    if not folder.has_ended or not folder.listing.get("exchanges"):
        return False
    listing = folder.listing
    exchanges, (best, *_) = listing["exchanges"], listing["best"]["members"]
    taken = np.nanmax(folder.metrics()["steps"], axis=0)
    steps = [0.0, *(taken[e["iteration"] - 1] for e in exchanges[1:]), taken[-1]]
    values = {
        name: np.asarray([e["values"][name] for e in exchanges], float)
        for name in exchanges[0]["values"]
    }
    parents = np.asarray([e["parents"] for e in exchanges])
    figure = schedules.schedule_figure(
        steps, values, parents, best, title=_title(folder), xlabel=folder.unit
    )
    save(figure, out)
    return True


def draw_sweep(folder: RunFolder, out: Path) -> bool:
    """Final returns of a run over what it varied, as the figure `out`; whether there was anything.

    There is nothing in a run of one setting, in one that has not ended, or where members were not
    trained alike, by a search beyond the grid.

    Raises: ValueError where `out` cannot be written, or its ending is not a known figure format.
    """
    listing = folder.listing
    settings = [setting["hyperparameters"] for setting in listing["settings"]]
    is_alike = folder.has_ended and folder.config["search"] is None
    if not is_alike or not settings or not sweeps.varied(settings):
        return False
    final = np.asarray([member["final_return"] for member in listing["members"]], dtype=float)
    returns = [final[setting["members"]] for setting in listing["settings"]]
    save(sweeps.sweep_figure(settings, returns, title=_title(folder)), out)
    return True


def _title(folder: RunFolder) -> str:
    return f"{folder.config['agent']} on {folder.config['env']}"


def save(figure: Figure, out: Path) -> None:
    try:
        plots.save(figure, out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
