"""`jaxrl plot DIR... --profile`: performance profiles of runs, and how they compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.command.tables import table
from experiments.runs import curves
from experiments.runs.folder import RunFolder
from experiments.runs.profiles import Comparison, compare
from jaxrl.report.formatting import interval_text, number
from jaxrl.report.profiles import profile_figure
from jaxrl.report.stats import probability_of_improvement


def profile(args: argparse.Namespace) -> None:
    """Draw the profiles, and print a row for each curve.

    Raises: ValueError where the runs cannot be compared, or the figure not be written.
    """
    folders = [RunFolder.open(path) for path in args.runs]
    references = dict(args.reference or ())
    if len(references) < len(args.reference or ()):
        raise ValueError("--reference: an environment is given twice")
    compared = compare(folders, references)
    envs = list(dict.fromkeys(folder.config["env"] for folder in folders))
    agents = list(dict.fromkeys(folder.config["agent"] for folder in folders))
    what = envs[0] if len(envs) == 1 else f"{len(envs)} environments"
    title = f"{agents[0]} on {what}" if len(agents) == 1 else f"final returns on {what}"
    label = "normalised return" if compared.scales else "final return"
    figure = profile_figure(compared.scores, title, label=label, names=compared.names)
    out = args.out or (Path("profile.png") if len(folders) > 1 else args.runs[0] / "profile.png")
    curves.save(figure, out)
    _print(compared, label)
    if len(folders) > 1 and any(len(folder.summary["settings"]) > 1 for folder in folders):
        print("of a run of several settings its best")
    for env, (low, high) in compared.scales.items():
        given = env in references
        seen = "the least and the highest seen"
        if high - low == 1:  # what a scale of equal returns is taken to be
            seen += ", or 1 more where all are equal"
        why = "" if given else f", {seen}; or --reference {env}=LOW,HIGH"
        print(f"{env}: 0 is a return of {number(low)}, 1 one of {number(high)}{why}")
    print(out)


def _print(compared: Comparison, label: str) -> None:
    """A row for each curve: how many runs, their interquartile mean, and the best against it."""
    iqms = [scores.iqm for scores in compared.scores]
    best = max(range(len(iqms)), key=lambda i: (iqms[i][0] == iqms[i][0], iqms[i][0]))
    rows = []
    for i, (scores, (iqm, *interval)) in enumerate(zip(compared.scores, iqms, strict=True)):
        runs = sum(len(returns) for returns in scores.strata)
        row = [scores.label, str(runs), number(iqm), interval_text(interval)]
        if len(iqms) > 1:
            against = probability_of_improvement(compared.scores[best].strata, scores.strata)
            chance, *ends = map(float, against)
            row += ["-", "-"] if i == best else [number(chance), interval_text(ends)]
            row.append("best" if i == best else "")
        rows.append(row)
    columns = [compared.names, "runs", f"IQM of {label}", "95% bootstrap"]
    columns += ["P(best higher)", "95%", ""] if len(iqms) > 1 else []
    table(columns, rows, right=columns[1:])
