"""Learning curves of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.report import setting_text
from experiments.runs import RunFolder
from jaxrl import plots


def of_run(folder: RunFolder, name: str = "") -> list[plots.Curve]:
    """A run's learning curves, one a setting; `name` goes before the setting in their labels."""
    metrics = folder.metrics()

    def curve(setting: dict[str, Any]) -> plots.Curve:
        steps, returns, episodes = (
            metrics[key][setting["members"]] for key in ("env_steps", "episode_return", "episodes")
        )
        changes = setting["hyperparameters"]
        label = " ".join(filter(None, [name, setting_text(changes)]))
        return plots.Curve(label, *plots.bin_episodes(steps, returns, episodes), changes)

    return [curve(setting) for setting in folder.summary["settings"]]


def draw(folders: list[RunFolder], out: Path) -> None:
    """The curves of one run, or of several over each other, as the figure `out`.

    Raises: ValueError where `out` cannot be written, or its ending is no known format of figures.
    """
    several = len(folders) > 1
    curves = [c for f in folders for c in of_run(f, f.path.resolve().name if several else "")]
    subjects = {f"{f.config['agent']} on {f.config['env']}" for f in folders}
    title = subjects.pop() if len(subjects) == 1 else ""
    try:
        plots.save(plots.learning_curves(curves, title=title), out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
