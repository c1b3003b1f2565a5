"""Figures of run folders: learning curves, and what a sweep found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs.folder import RunFolder
from experiments.runs.formatting import setting_text
from jaxrl.report import plots, schedules, sweeps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_run(folder: RunFolder, name: str = "") -> list[plots.Curve]:
    """A run's learning curves, one per setting; `name` goes before the setting in their labels.

    Returns of training episodes; where there are none, of evaluations during training.

    Raises: ValueError where there are neither.
    """
    metrics = folder.metrics()
    if "episode_return" not in metrics and "evaluation_returns" not in metrics:
        raise ValueError(f"{folder.path} has no returns to draw: give it --evaluations")

    search = folder.config["search"] or {}
    are_exchanged = search.get("method") == "pbt"  # so that no setting is a member's own

    def curve(setting: dict[str, Any]) -> plots.Curve:
        rows, changes = setting["members"], setting["hyperparameters"]
        own = f"member {rows[0]}" if are_exchanged else setting_text(changes)
        label = " ".join(filter(None, [name, own]))
        if "episode_return" in metrics:
            chosen = [metrics[key][rows] for key in ("steps", "episode_return", "episodes")]
            steps, returns = plots.bin_episodes(*chosen)
        else:
            steps = np.nanmax(metrics["evaluation_steps"][rows], axis=0)
            returns = metrics["evaluation_returns"][rows].mean(axis=2)
        return plots.Curve(label, steps, returns)

    return [curve(setting) for setting in folder.listing["settings"]]


def draw(folders: list[RunFolder], out: Path) -> None:
    """The curves of one run, or of several over each other, as the figure `out`.

    Raises: ValueError where `out` cannot be written, or its ending is not a known figure format.
    """
    several = len(folders) > 1
    curves = [c for f in folders for c in of_run(f, f.path.resolve().name if several else "")]
    subjects = {f"{f.config['agent']} on {f.config['env']}" for f in folders}
    title = subjects.pop() if len(subjects) == 1 else ""
    labels = {"xlabel": " or ".join(sorted({f.unit for f in folders}))}
    if any("episode_return" not in f.metrics() for f in folders):
        labels["ylabel"] = "return of evaluations"
    _save(plots.learning_curves(curves, title=title, **labels), out)


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
    _save(figure, out)
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
    _save(sweeps.sweep_figure(settings, returns, title=_title(folder)), out)
    return True


def _title(folder: RunFolder) -> str:
    return f"{folder.config['agent']} on {folder.config['env']}"


def _save(figure: Figure, out: Path) -> None:
    try:
        plots.save(figure, out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
