"""One protocol for every figure, claim or comparison.

A study is a set of cells (an agent on an environment, say), each measured over several seeds. Its
result lies in a folder of its own:

    result.json   a line for each cell: settings, measures (a value per seed), seconds, date, and
                  the commit, versions and device that measured it
    *.png         its figures
    notes.md      what a person says about it; never written by the program

and stands, with tables, intervals and verdicts on its claims, on the page README.md of the folder
above. A cell is written as soon as it is measured and is not measured again while its settings
are the same: a study that was killed continues with the cells that are missing.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.studies.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    Interval,
    Measures,
    Verdict,
    values_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale = Literal["quick", "full"]


class Table(NamedTuple):
    """Cells of text under the names of their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Context(NamedTuple):
    """What a cell may use while it is measured."""

    folder: Path  # of the study's result, for files to keep beside result.json
    work: Path  # for what is large or temporary: data, run folders
    cells: Mapping[str, Any]  # those measured before, as result.json has them
    say: Callable[[str], None]  # prints a line


class Study:
    """Subclasses say what they are, list their cells and measure one of them.

    Whatever is slow to import is imported where it is used: studies are listed without it.
    """

    name: str  # its module, and the folder of its result
    title: str
    paper: str
    question: str
    budget: str  # of the full scale, for people
    digits = 2  # after the point, in tables

    def cells(self, scale: Scale) -> dict[str, dict[str, Any]]:
        """Name of each cell -> its settings, which JSON can hold. `quick` takes seconds."""
        raise NotImplementedError

    def measure(self, cell: str, settings: dict[str, Any], context: Context) -> dict[str, Any]:
        """Run a cell: `measures`, name -> a value per seed, and whatever else is to be kept."""
        raise NotImplementedError

    def claims(self) -> list[Claim]:
        """What its paper states, or its question expects."""
        raise NotImplementedError

    def tables(self, cells: Mapping[str, Any]) -> list[Table]:
        """Of the cells that there are: a row for each, a column for each measure."""
        names = list(dict.fromkeys(name for cell in cells.values() for name in cell["measures"]))
        rows = [
            [name, *(self.text(cell["measures"].get(measure, [])) for measure in names)]
            for name, cell in cells.items()
        ]
        return [Table("", ["", *(name.replace("_", " ") for name in names)], rows)]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        """File name without its ending -> figure; those that the cells that there are allow."""
        return {}

    def text(self, values: Sequence[float]) -> str:
        """Mean and interval of a value per seed, as tables show it."""
        return Interval.of(values).text(self.digits) if len(values) else "-"

    def verdicts(self, cells: Mapping[str, Any]) -> list[Verdict]:
        """Its claims beside what the cells measured."""
        measures: dict[str, Measures] = {name: cell["measures"] for name, cell in cells.items()}
        return [claim.check(measures, self.digits) for claim in self.claims()]


def run(
    study: Study,
    scale: Scale,
    results: Path,
    work: Path,
    only: str = "",
    say: Callable[[str], None] = print,
) -> None:
    """Measure what is missing of `study` and draw its figures; cells are kept as they finish.

    Args:
        results: folder of all results.
        work: folder for what is large or temporary.
        only: a cell, or what the names of some begin with before a slash.

    Raises: ValueError where no cell is called so, or result.json cannot be read.
    """
    cells = {k: v for k, v in study.cells(scale).items() if _chosen(k, only)}
    if not cells:
        raise ValueError(f"{study.name} has no cell {only!r}: {', '.join(study.cells(scale))}")
    path = results / study.name / "result.json"
    missing = [name for name in cells if name not in read(study, scale, results)]
    for number, name in enumerate(missing, 1):
        say(f"{study.name}: {name} ({number} of {len(missing)})")
        context = Context(path.parent, work, read(study, scale, results), say)
        started = time.perf_counter()
        measured = study.measure(name, cells[name], context)
        cell = {
            "settings": cells[name],
            "seconds": round(time.perf_counter() - started, 1),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **origin(),
            **measured,  # of what was run before: when, by which code, how long
        }
        _write(path, _stored(path) | {name: cell})
    draw(study, scale, results)


def origin() -> dict[str, Any]:
    """The code, libraries and devices that measure a cell: as a run's config.json has them."""
    from experiments.runs import config

    known = config.origin("")
    return {"commit": known["git_commit"], "versions": known["versions"], "device": known["device"]}


def draw(study: Study, scale: Scale, results: Path) -> None:
    """Save the figures that can be drawn from the cells that there are."""
    cells = read(study, scale, results)
    from jaxrl.report import plots

    for name, figure in study.figures(cells).items() if cells else ():
        path = results / study.name / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.save(figure, path)


def read(study: Study, scale: Scale, results: Path) -> dict[str, Any]:
    """The cells that have been measured with the settings they have now, in the study's order."""
    stored = _stored(results / study.name / "result.json")
    wanted = study.cells(scale)
    return {
        name: stored[name] | {"measures": values_of(stored[name]["measures"])}
        for name, settings in wanted.items()
        if name in stored and stored[name]["settings"] == settings
    }


def state(study: Study, results: Path) -> str:
    """How much of the full scale there is."""
    there, wanted = len(read(study, "full", results)), len(study.cells("full"))
    if there in (0, wanted):
        return "done" if there else "not run"
    return f"partly, {there} of {wanted}"


def tally(study: Study, results: Path) -> str:
    """How many of its claims hold, by the cells of the full scale that there are."""
    cells = read(study, "full", results)
    found = [verdict.verdict for verdict in study.verdicts(cells)] if cells else []
    counts = [(found.count(verdict), word) for verdict, word in VERDICTS.items()]
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "-"


VERDICTS = {HOLDS: "hold", FAILS: "do not", UNDECIDED: "undecided"}


def page(studies: Iterable[Study], scale: Scale, results: Path) -> None:
    """Write README.md of the folder `results`: everything that has been measured there."""
    sections = [_section(s, scale, c, results) for s in studies if (c := read(s, scale, results))]
    _write_text(results / "README.md", "\n".join([PAGE + PAGE_OF[scale], *sections]))


PAGE = """# Results

This page is written by `jaxrl reproduce`, from the files beside it; the notes are ours. Intervals
are Student's t over seeds, 95 %. A claim holds where its intervals lie inside what it states, does
not hold where one lies outside, and is undecided where the data allow both.
"""
PAGE_OF = {"full": "", "quick": "\n**Quick runs show that the studies run, and nothing else.**\n"}


def _section(study: Study, scale: Scale, cells: Mapping[str, Any], results: Path) -> str:
    folder = results / study.name
    missing = [name for name in study.cells(scale) if name not in cells]
    lines = [f"## {study.title}", "", study.question, ""]
    lines += [f"*{study.paper}* Budget: {study.budget}. `jaxrl reproduce {study.name}`", ""]
    for table in study.tables(cells):
        lines += ([f"### {table.title}", ""] if table.title else []) + [*_markdown(table), ""]
    for path in sorted(folder.glob("*.png")):
        lines += [f"![{study.title}: {path.stem}]({study.name}/{path.name})", ""]
    curves = [path.relative_to(results) for path in sorted(folder.glob("*/**/*.png"))]
    if curves:
        links = ", ".join(f"[{'/'.join(path.parts[1:-1])}]({path})" for path in curves)
        lines += [f"Learning curves: {links}.", ""]
    verdicts = study.verdicts(cells)
    lines += [*_markdown(Table("", ["claim", "measured", "verdict"], verdicts)), ""]
    if missing:
        lines += [f"Not run: {', '.join(missing)}.", ""]
    notes = folder / "notes.md"
    return "\n".join(lines) + ("\n" + notes.read_text() if notes.exists() else "")


def _markdown(table: Table) -> list[str]:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows]


def _chosen(name: str, only: str) -> bool:
    return only in ("", name) or name.startswith(f"{only}/")


def _stored(path: Path) -> dict[str, Any]:
    """All cells of a result.json, those of other settings too."""
    if not path.exists():
        return {}
    try:
        cells: dict[str, Any] = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a study's result: {error}") from None
    return cells


def _write(path: Path, cells: Mapping[str, Any]) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(_json(cell))}" for name, cell in cells.items()]
    _write_text(path, '{"cells": {\n' + ",\n".join(lines) + "\n}}\n")


def _write_text(path: Path, text: str) -> None:
    from jaxrl import files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def _json(value: Any) -> Any:
    """Standard JSON has no NaN and no infinities: null."""
    if isinstance(value, Mapping):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
