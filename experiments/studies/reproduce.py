"""`jaxrl reproduce`: list the studies, or run some of them and write their page."""

from __future__ import annotations

import argparse
import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments import studies
from experiments.studies import study

# The kept results, in a checkout; an installed package has none.
KEPT = Path(__file__).parent.parent / "results"
RUNS = Path("runs") / "reproduce"
QUICK = Path("runs") / "quick"


def reproduce(args: argparse.Namespace) -> None:
    """Run what `args.names` names: studies, STUDY/CELL, or recipes (AGENT/ENV); none: list all.

    Results go to `args.out`; by default those of the full scale to the kept results, which are not
    repeated, and those of the quick one to a scratch folder, which is emptied first.

    With `args.check` nothing runs: it says how old the kept results are.

    Raises: ValueError for an unknown name, before anything runs.
    """
    scale: study.Scale = "quick" if args.quick else "full"
    names = studies.STUDIES if args.everything or (args.page and not args.names) else args.names
    wanted = [resolve(name, scale) for name in names]
    results = args.out or (QUICK if args.quick else KEPT if KEPT.is_dir() else RUNS / "results")
    work = results / "work" if args.out or args.quick else RUNS
    if args.check:
        show_ages([name for name, _ in wanted], results)
        return
    if not wanted:
        show_all(results)
    else:
        try:
            results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write to {results}: {error.strerror}") from None
    for name, only in wanted:
        chosen = studies.get(name)
        if args.page:
            study.draw(chosen, scale, results)
        else:
            if args.quick and not args.out:
                shutil.rmtree(results / name, ignore_errors=True)
                shutil.rmtree(work / name, ignore_errors=True)
            study.run(chosen, scale, results, work, only)
            show(chosen, scale, results)
        study.page(map(studies.get, studies.STUDIES), scale, results)
    if wanted:
        print(results / "README.md")


def resolve(name: str, scale: study.Scale) -> tuple[str, str]:
    """The study, and the cells of it, that are called `name`. Raises: ValueError where none is."""
    head, _, cell = name.partition("/")
    if head not in studies.STUDIES:  # a recipe's name goes without its study's
        head, cell = "recipes", name
    known = _beginnings(head, scale)
    if cell in ("", *known):
        return head, cell
    if head == "recipes":
        known = [*studies.STUDIES, *known]
    near = difflib.get_close_matches(cell, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "`jaxrl reproduce` lists the studies"
    raise ValueError(f"no study or cell of one is called {name!r} at the {scale} scale; {hint}")


def show_all(results: Path) -> None:
    """The studies as a table, and the recipes as another."""
    from experiments.command import printing
    from experiments.runs import recipes as recipe_files

    rows = []
    for name in studies.STUDIES:
        s = studies.get(name)
        state, verdicts = study.state(s, results), study.tally(s, results)
        rows.append([name, s.paper, s.question, s.budget, state, verdicts])
    printing.table(["study", "paper", "question", "budget", "state", "claims"], rows)
    recipes = studies.get("recipes")
    kept = study.read(recipes, "full", results)
    of_kept, *_ = recipes.tables(kept)
    shown = {row[0]: row[3:7] for row in of_kept.rows}
    aims = {recipe.name: recipe.aim for recipe in recipe_files.everything()}
    listed = []
    for name, cell in recipes.cells("full").items():
        aim = aims[name]
        beside = shown.get(name, ["not run", "", aim.text() if aim else "-", "-"])
        listed.append([name, f"{cell['seeds']} x {cell['steps']:,}", *beside])
    printing.table(["recipe", "seeds x steps", *of_kept.columns[3:7]], listed)


def show_ages(names: Sequence[str], results: Path) -> None:
    """Which kept results are older than the code that their numbers come from; of all, in short."""
    from experiments.command import printing
    from experiments.studies.age import ages

    chosen = list(dict.fromkeys(names)) or studies.STUDIES
    rows = []
    for age in (age for name in chosen for age in ages(studies.get(name), results)):
        differ = age.changed if names else (age.changed or [])[:2]
        more = len(age.changed or []) - len(differ or [])
        state = ", ".join([*(differ or []), *([f"{more} more"] if more else [])])
        rows.append([age.name, age.date, age.commit, "?" if age.changed is None else state or "-"])
    printing.table(["result", "measured", "at commit", "files that differ by now"], rows)


def show(chosen: study.Study, scale: study.Scale, results: Path) -> None:
    """A study's tables and verdicts."""
    from experiments.command import printing

    cells = study.read(chosen, scale, results)
    for table in chosen.tables(cells):
        print(table.title or chosen.title)
        printing.table(table.columns, table.rows)
    printing.table(["claim", "measured", "verdict"], chosen.verdicts(cells))


def _beginnings(name: str, scale: study.Scale) -> list[str]:
    """The cells of a study, and what they begin with before a slash."""
    words = [cell.split("/") for cell in studies.get(name).cells(scale)]
    return list(dict.fromkeys("/".join(w[:n]) for w in words for n in range(1, len(w) + 1)))
