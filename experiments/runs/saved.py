"""What the checkpoints of a run that has not ended tell about its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.config import Config, trained_agent
from jaxrl.training import restore
from jaxrl.training.history import History
from jaxrl.training.sweep import by_program


def saved_members(path: Path, checkpoints: Path, config: Config) -> dict[str, Any]:
    """The members that were saved, in the form of summary.json: numbered as if they were all.

    Raises: ValueError where there are none.
    """
    base, seeds = config["hyperparameters"], config["seeds"]
    rows = [(s, seed) for s in config["settings"] for seed in seeds]
    search = config["search"] or {"method": "sweep"}
    if search["method"] == "pbt":  # whose members have a seed each
        rows = [(s, search["seed"] * len(rows) + i) for i, (s, _) in enumerate(rows)]
    if search["method"] == "halving":
        batches = _rungs(checkpoints)
    else:
        batches = _batches(checkpoints, config, [base | setting for setting, _ in rows])
    if not batches:
        raise ValueError(f"{path} has not ended, and nothing of it was saved yet")
    ran = sorted({i for batch in batches for i in batch})
    number = {i: n for n, i in enumerate(ran)}
    settings = []
    for k, setting in enumerate(config["settings"]):
        its_own = range(k * len(seeds), (k + 1) * len(seeds))
        saved = [number[i] for i in its_own if i in number]
        if saved:
            settings.append({"hyperparameters": setting, "members": saved})
    return {
        "members": [{"hyperparameters": base | rows[i][0], "seed": rows[i][1]} for i in ran],
        "settings": settings,
        "checkpoints": [[number[i] for i in batch] for batch in batches],
    }


def _rungs(checkpoints: Path) -> list[list[int]]:
    """The members of each rung of a halving that was saved."""
    rungs: list[list[int]] = []
    while about := restore.belongs_to(checkpoints / str(len(rungs))):
        rungs.append(about["successive halving"]["members"])
    return rungs


def _batches(checkpoints: Path, config: Config, members: list[dict[str, Any]]) -> list[list[int]]:
    """The members of each batch that was saved, in the order in which a sweep trains them."""
    batches: list[list[int]] = []
    for rows in by_program([trained_agent(config, values) for values in members]):
        first = 0
        while first < len(rows):
            size = restore.members(checkpoints / str(len(batches)))
            if not size:
                return batches
            batches.append(rows[first : first + size])
            first += size
    return batches


def saved_history(checkpoints: Path, listing: dict[str, Any]) -> History:
    """What the members of a listing have shown until their newest checkpoints."""
    batches = listing["checkpoints"]
    parts = [restore.read_history(checkpoints / str(i)) for i in range(len(batches))]
    return History.gather(batches, parts)


def last_returns(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """The mean return of each member's last evaluation (members,), NaN where there is none.

    Without evaluations, of the newest tenth of its iterations in which training episodes ended.
    """
    if "evaluation_returns" in metrics:
        rows, share = metrics["evaluation_returns"].mean(axis=2), 0.0
    else:
        rows, share = (
            metrics.get("episode_return", np.full((len(metrics["steps"]), 1), np.nan)),
            0.1,
        )
    finite = [row[np.isfinite(row)] for row in rows]
    newest = [row[-max(1, int(share * len(row))) :] for row in finite]
    return np.array([row.mean() if len(row) else np.nan for row in newest])
