"""Pages of what was measured: curves beside published ones, a table for each family, and claims.

Everything is read from the kept results of `jaxrl reproduce`, as its own page is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import agent_pages  # beside this file, where mkdocs looks while it reads it

import agents
from experiments import studies
from experiments.runs import recipes
from experiments.studies import age, study
from experiments.studies.claims import FAILS, HOLDS, UNDECIDED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
FROM_HERE = "../../experiments/results"  # as pages of docs/results link to it
INTERVALS = "Intervals are Student's t over seeds, 95 %."
FIGURES = ("curve.png", "final.png")

Kept = Mapping[str, Mapping[str, Any]]  # study -> its cells at the full scale


def pages() -> dict[str, str]:
    """Name of each page -> its Markdown."""
    kept = {name: study.read(studies.get(name), "full", RESULTS) for name in studies.STUDIES}
    return {"claims": claims(kept), "curves": curves(kept), "families": families(kept)}


def claims(kept: Kept) -> str:
    """Every claim with its verdict, and how much of each study there is."""
    overview, found = [], {HOLDS: [], FAILS: [], UNDECIDED: []}
    for name, cells in kept.items():
        one = studies.get(name)
        title = f"[{one.title}]({FROM_HERE}/README.md#{anchor(one.title)})" if cells else one.title
        verdicts = one.verdicts(cells) if cells else []
        for claim, measured, verdict in verdicts:
            found[verdict].append([title, clean(claim), clean(measured)])
        counts = [sum(v.verdict == verdict for v in verdicts) for verdict in found]
        state = study.state(one, RESULTS)
        numbers = [str(count) for count in counts] if cells else ["-"] * len(counts)
        overview.append([title, clean(one.paper), state, *numbers, hours(cells), dates(cells)])
    total = hours({f"{name}/{cell}": value for name in kept for cell, value in kept[name].items()})
    columns = ["study", "paper", "cells", *found, "machine time", "measured"]
    parts = [
        "# What holds, and what does not",
        "What papers state, and what we expected, beside what was measured here. A claim holds "
        "where its intervals lie inside what it states, does not hold where one lies outside, and "
        f"is undecided where the data allow both. {INTERVALS}",
        agent_pages.table(columns, overview),
        f"Where time was kept it is {total} together, on the devices that each cell names (a dash: "
        "none was kept). `jaxrl reproduce NAME` measures a study that is not there, and `jaxrl "
        "reproduce --check` says which results are older than their code.",
    ]
    for verdict, rows in found.items():
        parts.append(f"## {verdict.capitalize()}: {len(rows)}")
        parts.append(agent_pages.table(["study", "claim", "measured"], rows) if rows else "None.")
    return "\n\n".join(parts) + "\n"


def curves(kept: Kept) -> str:
    """A gallery: a figure for each recipe, by family of agents, and those of the studies."""
    parts = [
        "# Curves",
        "What each recipe reached beside what was published, one figure each. Lines are means over "
        f"seeds of the returns of training episodes. {INTERVALS} A diamond is the mean return of "
        "the final policies in 64 fresh episodes each, with deterministic actions. Legends say "
        "where others' numbers stand and how they were measured; [how they were read]"
        f"({FROM_HERE}/README.md#{anchor(published_title(kept['recipes']))}) stands beside them. "
        "Where our curve was not kept as numbers, the figure is that of the run, and a second one "
        "has its final returns.",
    ]
    rows = {row[0]: row for row in recipe_rows(kept["recipes"])}
    for family, names in agent_pages.families().items():
        shown = [recipe for recipe in recipes.everything() if recipe.agent in names]
        figures = [text for recipe in shown if (text := figure(recipe, rows.get(recipe.name)))]
        if figures:
            parts += [f"## {family}", *figures]
    parts.append("## Studies")
    for name in kept:
        for path in sorted((RESULTS / name).glob("*.png")):
            title = studies.get(name).title
            parts.append(f"**{title}**: {clean(studies.get(name).question)}")
            parts.append(f"![{title}: {path.stem}]({FROM_HERE}/{name}/{path.name})")
    return "\n\n".join(parts) + "\n"


def families(kept: Kept) -> str:
    """A table of recipes for each family of agents; of the others, the studies that train them."""
    rows = recipe_rows(kept["recipes"])
    parts = [
        "# By family",
        f"Final returns of each recipe, in 64 fresh episodes per seed. {INTERVALS} *Reached*: the "
        "whole interval is at least the published number; *within the interval*: the data allow "
        "both; *not reached*: the interval lies below it, and the mean by so much.",
    ]
    columns = ["recipe", "steps", "seeds", "final return", "95 % interval"]
    columns += ["published", "which is", "its protocol", "its source"]
    for family, names in agent_pages.families().items():
        own = [linked(row) for row in rows if row[0].partition("/")[0] in names]
        others = [name for name in names if not any(row[0].startswith(f"{name}/") for row in rows)]
        parts.append(f"## {family}")
        parts += [agent_pages.table(columns, own)] if own else []
        parts += [f"No recipe of these was kept: {listed(others, kept)}."] if others else []
    return "\n\n".join(parts) + "\n"


def figure(recipe: recipes.Recipe, row: list[str] | None) -> str:
    """A recipe's kept figures below what they say; "" where it has none."""
    folder = RESULTS / "recipes" / recipe.name
    there = [name for name in FIGURES if (folder / name).exists()]
    if row is None or not there:
        return ""
    _, steps, seeds, mean, interval, aim, standing, *_ = row
    text = f"**{recipe.name}**: {mean} {interval}, {seeds} seeds of {steps} steps"
    text += "." if aim == "-" else f"; published {aim}: {standing}."
    at = f"{FROM_HERE}/recipes/{recipe.name}"
    pictures = [f"![{recipe.name}: {name[:-4]}]({at}/{name}){{width=620}}" for name in there]
    return "\n\n".join([text, *pictures])


def recipe_rows(cells: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the recipes' first table, which the page of results has too."""
    return [[clean(text) for text in row] for row in studies.get("recipes").tables(cells)[0].rows]


def published_title(cells: Mapping[str, Any]) -> str:
    return studies.get("recipes").tables(cells)[-1].title


def linked(row: list[str]) -> list[str]:
    """A recipe's name becomes a link to its agent's page."""
    agent, _, env = row[0].partition("/")
    return [f"[{agent}](../agents/{agent}.md) {env}", *row[1:]]


def listed(names: list[str], kept: Kept) -> str:
    """Agents, each with the kept studies that train it."""
    texts = []
    for name in names:
        of = [studies.get(s).title for s, cells in kept.items() if cells and name in trained(s)]
        texts.append(f"[{name}](../agents/{name}.md)" + (f" (in: {', '.join(of)})" if of else ""))
    return ", ".join(texts)


def trained(name: str) -> set[str]:
    """The agents that a study's file names; the recipes' are not named there."""
    return age.words_of(ROOT / "experiments" / "studies" / f"{name}.py") & set(agents.AGENTS)


def hours(cells: Mapping[str, Any]) -> str:
    """Machine time of the cells that kept theirs: `2.5 h`, `40 s`; a dash where none did."""
    known = [cell["seconds"] for cell in cells.values() if "seconds" in cell]
    if not known:
        return "-"
    seconds = sum(known)
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def dates(cells: Mapping[str, Any]) -> str:
    """The first and the last day on which cells were measured."""
    days = sorted({cell["date"] for cell in cells.values()})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "-"


def anchor(title: str) -> str:
    """Of a heading, as mkdocs makes it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return "-".join(kept.split())


def clean(text: str) -> str:
    """A cell of a Markdown table has no bars."""
    return text.replace("|", "/")
