"""The recipes of experiments/recipes, each with eight seeds, beside published numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs import recipes
from experiments.runs.recipes import Published, Recipe
from experiments.studies import study
from experiments.studies.claims import Claim, Interval, mean_of
from jaxrl.report.formatting import steps_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT = ("config.json", "summary.json", "curve.png")
ENVIRONMENT_STEPS = "environment steps"
INTERRUPTED = 130  # the command's status after Ctrl-C
OURS = "evaluation episodes, deterministic actions"  # the protocol of final returns


class Recipes(study.Study):
    name = "recipes"
    title = "Recipes"
    paper = "Each recipe names its own source."
    question = (
        "What does each recipe reach, as the mean return of 64 fresh evaluation episodes of every "
        "final policy (its mode, or the greedy action)? Beside it lie its configuration (with "
        "versions, device and commit), the return of every seed and its learning curve."
    )
    budget = "8 seeds of 50,000 to 10 million steps each: one minute to over an hour on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            return {"ppo/CartPole-v1": {"steps": 2048, "seeds": 2}}
        return {recipe.name: {"steps": recipe.steps, "seeds": 8} for recipe in recipes.everything()}

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        from experiments.command import cli

        out = context.work / self.name / cell
        if not _finished(out):
            words = ["train", *cell.split("/", 1), "--out", str(out)]
            words += ["--steps", str(settings["steps"]), "--seeds", str(settings["seeds"])]
            if (out / "config.json").exists():
                words = ["train", "--resume", str(out)]
            status = cli.main(words)
            if status == INTERRUPTED:
                raise KeyboardInterrupt
            if status:
                raise ValueError(f"{cell}: jaxrl {' '.join(words)} ended with status {status}")
        folder = context.folder / cell
        folder.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copy(out / file, folder / file)
        (folder / "final.png").unlink(missing_ok=True)  # of a cell that had kept no curve
        return of_run(out)

    def claims(self) -> list[Claim]:
        return [
            Claim(
                f"{recipe.name} reaches the published {recipe.aim.value:g}",
                mean_of(recipe.name, "final_return"),
                low=recipe.aim.value,
            )
            for recipe in recipes.everything()
            if recipe.aim is not None
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        there = [recipe for recipe in recipes.everything() if recipe.name in cells]
        rows = [_row(recipe, cells[recipe.name]) for recipe in there]
        columns = ["recipe", "steps", "seeds", "final return", "95 % interval", "published"]
        reached = study.Table("", [*columns, "which is", "its protocol", "its source"], rows)
        columns = ["recipe", "return", "+- over", "steps", "protocol", "source", "read off"]
        published = [
            [recipe.name, p.text(), p.over or "-", f"{p.steps:,}", p.protocol, p.source, p.read]
            for recipe in there
            for p in recipe.published
        ]
        title = "Published, the first of each recipe its aim"
        return [reached, *([study.Table(title, columns, published)] if published else [])]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        """Learning curves beside published ones; of a cell without a curve, its final returns."""
        found = {}
        for recipe in recipes.everything():
            cell = cells.get(recipe.name, {})
            if "curve" in cell:
                found[f"{recipe.name}/curve"] = figure(recipe, cell)
            elif cell and recipe.published:
                found[f"{recipe.name}/final"] = figure(recipe, cell)
        return found


STUDY = Recipes()


def standing(reached: Interval, published: float | None) -> str:
    """Where a published number lies beside an interval of ours: higher returns are better."""
    if published is None:
        return "-"
    if reached.high < published:
        return f"not reached, by {published - reached.mean:,.2f}"
    return "reached" if reached.low >= published else "within the interval"


def of_run(run: Path) -> dict[str, Any]:
    """What is kept in result.json of a finished run: returns, curve, and where they come from."""
    config = json.loads((run / "config.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    returns = [member["final_return"] for member in summary["members"]]
    unit = summary["unit"]  # of most recipes environment steps
    of_unit = {} if unit == ENVIRONMENT_STEPS else {"unit": unit}
    parts = ("compile_seconds", "run_seconds", "evaluation_seconds")
    return {
        "measures": {"final_return": returns},
        **of_unit,
        steps_name(unit): summary[steps_name(unit)],
        "seconds": round(sum(summary.get(part, 0.0) for part in parts), 1),
        "date": config["created"][:10],
        "commit": config["git_commit"],
        "versions": config["versions"],
        "device": config["device"],
        "curve": curve_of(run),
    }


def curve_of(run: Path) -> dict[str, Any]:
    """A run's learning curve: `steps` (bins,) and `returns` (seeds, bins), null where none is.

    Returns are those of training episodes, to four digits.
    """
    from experiments.runs import curves
    from experiments.runs.folder import RunFolder

    (curve,) = curves.of_run(RunFolder.open(run))
    rows = [[_rounded(x) for x in row] for row in curve.returns.tolist()]
    return {"steps": [round(x) for x in curve.steps.tolist()], "returns": rows}


def figure(recipe: Recipe, cell: Mapping[str, Any]) -> Figure:
    """What a recipe reached beside what was published: curves where there are, final returns.

    Ours in blue; each published run in a colour of its own, as a line where its curve is known and
    else as a mark at its steps. Bars and bands are explained above the axes.
    """
    from matplotlib.figure import Figure

    from jaxrl.report.plots import steps_formatter

    drawn = Figure(figsize=(7.0, 5.0), dpi=150, layout="constrained")
    axes = drawn.add_subplot()
    unit = cell.get("unit", ENVIRONMENT_STEPS)
    returns = np.asarray(cell["measures"]["final_return"], dtype=float)
    taken = cell[steps_name(unit)] / len(returns)
    ends = [taken, *(p.steps for p in recipe.published if p.steps <= 1.5 * taken)]
    if "curve" in cell:
        _draw_curve(axes, cell["curve"], f"jaxrl, {len(returns)} seeds: training episodes")
    else:
        axes.plot([taken] * len(returns), returns, "o", color="C0", alpha=0.35, markersize=4)
    final = Interval.of(returns)
    label = f"jaxrl, final policies: {OURS}"
    if "curve" not in cell:
        label += f"\n(a dot for each of {len(returns)} seeds, mean and interval)"
    _draw_final(axes, taken, final.mean, (final.mean - final.low, final.high - final.mean), label)
    for colour, published in enumerate(recipe.published, 1):
        _draw_published(axes, published, f"C{colour}", max(ends))
    axes.set_title(f"{recipe.agent} on {recipe.env}", loc="left", fontsize="medium")
    about = "jaxrl: mean and 95 % t interval over seeds"
    axes.set_title(about, loc="right", fontsize="x-small", color="0.4")
    axes.set(xlabel=unit, ylabel="return", xlim=(0, 1.03 * max(ends)))
    low, high = _range(recipe, cell, final, max(ends))
    axes.set_ylim(low, high)
    axes.xaxis.set_major_formatter(steps_formatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    drawn.legend(loc="outside lower left", fontsize="x-small", frameon=False)
    return drawn


def _row(recipe: Recipe, cell: Mapping[str, Any]) -> list[str]:
    returns, aim = cell["measures"]["final_return"], recipe.aim
    reached = Interval.of(returns)
    mean, interval = reached.text().split(" ", 1)
    unit = cell.get("unit", ENVIRONMENT_STEPS)
    steps = f"{cell[steps_name(unit)] // len(returns):,}"
    steps += "" if unit == ENVIRONMENT_STEPS else f" {unit}"
    row = [recipe.name, steps, str(len(returns)), mean, interval]
    if aim is None:
        return [*row, "-", "-", "-", recipe.source]
    protocol = f"{aim.protocol}, after {aim.steps:,} steps"
    return [*row, aim.text(), standing(reached, aim.value), protocol, aim.source]


def _draw_curve(axes: Axes, curve: Mapping[str, Any], label: str) -> None:
    from jaxrl.report.stats import mean_ci

    steps, returns = np.asarray(curve["steps"]), np.asarray(curve["returns"], dtype=float)
    mean, low, high = mean_ci(returns)
    axes.plot(steps, mean, color="C0", linewidth=1.6, label=label)
    axes.fill_between(steps, low, high, color="C0", alpha=0.18, linewidth=0)


def _draw_final(
    axes: Axes, steps: float, mean: float, errors: tuple[float, float], label: str
) -> None:
    style: dict[str, Any] = {"color": "C0", "marker": "D", "markersize": 5, "capsize": 3}
    bars = [[error] for error in errors]
    axes.errorbar([steps], [mean], bars, linestyle="none", label=label, zorder=5, **style)


def _draw_published(axes: Axes, published: Published, colour: str, end: float) -> None:
    """What was measured beyond the end of the axis is a level."""
    over = f" over {published.over}" if published.over else ""
    label = f"{published.source}: {published.text()}{over}, after {published.steps:,} steps"
    label = f"{label}\n({published.protocol})".replace("+-", "$\\pm$")
    points = [(x, y) for x, y in published.points if x <= end]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.1, linestyle="--")
    if published.steps > end:
        axes.axhline(published.value, color=colour, linewidth=1.1, linestyle=":", label=label)
        return
    style: dict[str, Any] = {"color": colour, "marker": "s", "markersize": 4, "capsize": 3}
    style |= {"linestyle": "--" if points else "none", "linewidth": 1.1}
    bar = [published.spread] if published.spread else None
    axes.errorbar([published.steps], [published.value], bar, label=label, zorder=4, **style)


def _range(
    recipe: Recipe, cell: Mapping[str, Any], final: Interval, end: float
) -> tuple[float, float]:
    """The axis of returns: all means, and of intervals what lies within all single returns."""
    seen = [*cell["measures"]["final_return"], final.low, final.high]
    seen += [x for row in cell.get("curve", {"returns": []})["returns"] for x in row]
    for published in recipe.published:
        spread = published.spread or 0.0
        seen += [published.value, published.value - spread, published.value + spread]
        seen += [y for x, y in published.points if x <= end]
    known = [x for x in seen if x is not None and math.isfinite(x)]
    margin = 0.04 * (max(known) - min(known)) or 1.0
    return min(known) - margin, max(known) + margin


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _finished(run: Path) -> bool:
    path = run / "summary.json"
    return path.exists() and not json.loads(path.read_text())["interrupted"]
