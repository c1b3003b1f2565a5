"""`jaxrl eval`: fresh episodes of the trained agents of a run."""

from __future__ import annotations

import argparse

import jax
import numpy as np

import jaxrl
from experiments.command.tables import table
from experiments.runs.folder import RunFolder
from experiments.runs.summary import recorded
from jaxrl.report.formatting import interval_text, number, setting_text
from jaxrl.report.stats import iqm_ci, mean_ci


def evaluate(args: argparse.Namespace) -> None:
    """Print a row per member, and the mean over members."""
    folder = RunFolder.open(args.run)
    if not folder.has_ended:
        print(f"{folder.path} has not ended: these are its checkpoints")
    rows, means, names = [], [], []
    for member in folder.members(folder.chosen(args.member, args.best), args.checkpoint):
        key = jax.random.fold_in(jax.random.key(args.seed), member.number)
        evaluation = jaxrl.evaluate(
            member.agent, member.state, key, args.episodes, deterministic=not args.stochastic
        )
        mean, *interval = map(float, mean_ci(np.asarray(evaluation.returns)))
        means.append(mean)
        sums = recorded(evaluation)
        names = list(sums)
        rows.append(
            [
                str(member.number),
                setting_text(member.setting),
                str(member.seed),
                f"{member.iteration:,}",
                number(mean),
                interval_text(interval),
                number(float(np.mean(np.asarray(evaluation.lengths)))),
                *(number(float(x.mean())) for x in sums.values()),
            ]
        )
    columns = ["member", "setting", "seed", "iteration"]
    columns += ["mean return", "95% over episodes", "mean length"]
    columns += [f"mean {name}" for name in names]
    table(columns, rows, right=[c for c in columns if c != "setting"])
    if len(means) > 1:
        for name, estimate in (("mean", mean_ci(means)), ("IQM", iqm_ci(means))):
            value, *interval = map(float, estimate)
            print(f"{name} over members {number(value)}, 95% {interval_text(interval)}")
