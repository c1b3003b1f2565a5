"""What the `jaxrl` command prints on standard output: the results of a run, and of collecting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from experiments.command.tables import table
from jaxrl.report.formatting import interval_text, number, single_text, steps_name, words_of
from jaxrl.report.stats import FEW

if TYPE_CHECKING:
    from experiments.runs.collect import Written

BETTER = "P(best higher)"  # how likely a seed of the best setting returns more


def results(summary: dict[str, Any]) -> None:
    """Print a summary's settings with mean and interval, then its times and its speed."""
    seeds = len(summary["settings"][0]["members"])
    print(
        f"final return over {seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{summary['episodes_per_member']} fresh episodes each"
    )
    if "exchanges" in summary:
        print(_exchanged(summary["exchanges"]))
    _settings(summary["settings"], summary["best"], summary.get("rungs", []))
    if len(summary["settings"]) > 1:
        print(_best(summary))
    diverged = sum(not math.isfinite(member["final_return"]) for member in summary["members"])
    if diverged:
        print(f"without {diverged} of {len(summary['members'])} members, which became non-finite")
    if summary["unfinished_episodes"]:
        print(f"{summary['unfinished_episodes']} evaluation episodes were cut off unfinished")
    print(speed(summary))


def _best(summary: dict[str, Any]) -> str:
    """A line: the best setting and what it was chosen from; of an interrupted run, so far."""
    best = summary["best"]
    if not _is_number(best["measures"]["return"]["mean"]):
        return "no setting is the best: none has a return"
    so_far = " so far" if summary["interrupted"] else ""
    of = ""
    if "rungs" in summary:
        of = " of those trained " + ("longest" if summary["interrupted"] else "to the end")
    return f"best{so_far}{of}: {words_of(best['hyperparameters'])}"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _exchanged(exchanges: list[dict[str, Any]]) -> str:
    """A line: how often members of population-based training copied each other."""
    copies = sum(
        parent != i for entry in exchanges[1:] for i, parent in enumerate(entry["parents"])
    )
    return (
        f"members copied each other {copies:,} times at {len(exchanges) - 1:,} exchanges; "
        "hyper-parameters are those of the end"
    )


def _settings(
    settings: list[dict[str, Any]], best: dict[str, Any], rungs: list[dict[str, Any]]
) -> None:
    """A row per setting: what sets it apart, then each of its measures with its interval.

    Of the return with several seeds also the interquartile mean, and of several settings how
    likely a seed of the best returns more. Of a halving, also the steps that its members have been
    trained for.
    """
    names = list(settings[0]["hyperparameters"])
    seeds, several = len(settings[0]["members"]), len(settings) > 1
    columns = list(names)
    for name in settings[0]["measures"]:
        title = name.replace("_", " ")
        columns += [f"mean {title}" if name in ("return", "score") else title, "95% t"]
        if name == "return" and seeds > 1:
            columns += ["IQM", "95% bootstrap", *([BETTER] if several else [])]
    for name in settings[0]["recorded"]:
        columns += [f"mean {name}", "95% t"]
    if rungs:
        columns.insert(len(names), "steps")
    right, rows = list(columns), []
    for setting in settings:
        row = [single_text(setting["hyperparameters"][name]) for name in names]
        if rungs:
            trained = [r["steps"] for r in rungs if setting["members"][0] in r["members"]]
            row.append(f"{trained[-1]:,}")
        for name, measure in (*setting["measures"].items(), *setting["recorded"].items()):
            row += [number(measure["mean"]), interval_text(measure["ci95"])]
            if name == "return" and seeds > 1:
                row += [number(measure["iqm"]), interval_text(measure["iqm_ci95"])]
                row += [number(setting["improvement"]["probability"])] if several else []
        is_best = setting["members"] == best["members"]
        is_best &= _is_number(best["measures"]["return"]["mean"])
        mark = "best" if is_best else ""
        rows.append([*row, mark] if several else row)
    columns += [""] if several else []
    table(columns, rows, right, optional=["IQM", "95% bootstrap", BETTER])
    if 1 < seeds < FEW:
        print(
            f"intervals of {seeds} seeds say little: t's may reach beyond all possible returns, "
            f"the bootstrap's are too narrow; --seeds {FEW} or more tell more"
        )


def speed(summary: dict[str, Any]) -> str:
    """A line: the times of a run, its steps and how many of them it took per second."""
    unit = summary["unit"]
    name = steps_name(unit)
    return (
        f"compile {summary['compile_seconds']:.1f} s, run {summary['run_seconds']:.1f} s, "
        f"{summary[name]:,} {unit}, "
        f"{summary[f'{name}_per_second']:,.0f} {unit} per second in total"
    )


def recordings(files: Iterable[Written]) -> None:
    """Print what `jaxrl collect` wrote, a row per file."""
    rows = [
        [
            file.kind,
            f"{file.steps:,}",
            f"{len(file.returns):,}",
            number(float(file.returns.mean())),
            number(file.score),
            str(file.path),
        ]
        for file in files
    ]
    columns = ["kind", "steps", "whole episodes", "mean return", "score", "file"]
    table(columns, rows, right=columns[1:5])
