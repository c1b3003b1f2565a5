"""The recipes of experiments/recipes, each with eight seeds, beside published numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from experiments.runs import recipes
from experiments.studies import study
from experiments.studies.claims import Claim, Interval, mean_of
from jaxrl.report.formatting import steps_name

KEPT = ("config.json", "summary.json", "curve.png")
ENVIRONMENT_STEPS = "environment steps"
INTERRUPTED = 130  # the command's status after Ctrl-C


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
        return of_summary(json.loads((out / "summary.json").read_text()))

    def claims(self) -> list[Claim]:
        return [
            Claim(
                f"{recipe.name} reaches the published {recipe.published:g}",
                mean_of(recipe.name, "final_return"),
                low=recipe.published,
            )
            for recipe in recipes.everything()
            if recipe.published is not None
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        rows = []
        for recipe in recipes.everything():
            if recipe.name not in cells:
                continue
            cell = cells[recipe.name]
            returns = cell["measures"]["final_return"]
            reached = Interval.of(returns)
            mean, interval = reached.text().split(" ", 1)
            published = "-" if recipe.published is None else f"{recipe.published:g}"
            unit = cell.get("unit", ENVIRONMENT_STEPS)
            steps = f"{cell[steps_name(unit)] // len(returns):,}"
            steps += "" if unit == ENVIRONMENT_STEPS else f" {unit}"
            seeds = str(len(returns))
            beside = [published, standing(reached, recipe.published), recipe.source]
            rows.append([recipe.name, steps, seeds, mean, interval, *beside])
        columns = ["recipe", "steps", "seeds", "final return", "95 % interval", "published"]
        return [study.Table("", [*columns, "which is", "its source"], rows)]


STUDY = Recipes()


def standing(reached: Interval, published: float | None) -> str:
    """Where a published number lies beside an interval of ours: higher returns are better."""
    if published is None:
        return "-"
    if reached.high < published:
        return f"not reached, by {published - reached.mean:,.2f}"
    return "reached" if reached.low >= published else "within the interval"


def of_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept in result.json of a run's summary.json."""
    returns = [member["final_return"] for member in summary["members"]]
    unit = summary["unit"]  # of most recipes environment steps
    of_unit = {} if unit == ENVIRONMENT_STEPS else {"unit": unit}
    taken = {steps_name(unit): summary[steps_name(unit)]}
    return {"measures": {"final_return": returns}, **of_unit, **taken}


def _finished(run: Any) -> bool:
    path = run / "summary.json"
    return path.exists() and not json.loads(path.read_text())["interrupted"]
