"""`jaxrl watch`: the curves of a run in the terminal, during training or after it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import curves, schema
from experiments.runs.folder import RunFolder
from jaxrl.report import plots
from jaxrl.report.formatting import number

Line = dict[str, Any]


def watch(path: Path, every: float) -> None:
    """Draw the curves every so many seconds until the run has ended, and refresh curve.png.

    Where standard output is not a terminal they are drawn once.

    Raises: ValueError where `path` holds no run, a damaged one, or curve.png cannot be written.
    """
    live = sys.stdout.isatty()
    while True:
        folder = RunFolder.open(path)  # anew: the run may have been resumed
        ended = folder.has_ended
        lines = schema.read_lines(folder.log)
        text = f"{path}: {status(lines, ended, folder.unit)}"
        drawn = curves_of(lines)
        if drawn:
            text = f"{in_characters(drawn, folder.unit)}\n{text}"
            if ended:
                curves.draw([folder], path / "curve.png")
            else:
                figure = plots.learning_curves(
                    drawn, title="mean over members", xlabel=f"{folder.unit} per member"
                )
                plots.save(figure, path / "curve.png")
        if live:
            print("\x1b[2J\x1b[H", end="")  # a clear screen
        print(text, flush=True)
        if ended or not live:
            return
        time.sleep(every)


def curves_of(lines: list[Line]) -> list[plots.Curve]:
    """Mean returns of training episodes, or of evaluations, over a member's steps, by batch."""
    name = "episode_return" if any("episode_return" in x for x in lines) else "evaluation_return"
    curves = []
    for batch in sorted({line["batch"] for line in lines}):
        # What a resumed run did again stands there twice: the last of each iteration holds.
        newest = {line["iteration"]: line for line in lines if line["batch"] == batch}
        points = [
            (line["env_steps"] / line["members"], line[name])
            for _, line in sorted(newest.items())
            if line.get(name) is not None
        ]
        if len(points) > 1:
            steps, returns = np.asarray(points).T
            curves.append(plots.Curve(f"batch {batch}", steps, returns[None]))
    return curves


def in_characters(drawn: list[plots.Curve], unit: str) -> str:
    """Curves as text of 100 columns and 24 lines."""
    import plotext

    plotext.clear_figure()
    plotext.plotsize(100, 24)
    plotext.theme("clear")
    for curve in drawn:
        label = curve.label if len(drawn) > 1 else None
        plotext.plot(curve.steps.tolist(), curve.returns[0].tolist(), label=label)
    plotext.xlabel(f"{unit} per member")
    plotext.ylabel("return")
    text: str = plotext.uncolorize(plotext.build())
    return text.rstrip()


def status(lines: list[Line], ended: bool, unit: str) -> str:
    """How far the run is, in a line."""
    if not lines:
        return "nothing to show yet"
    last = lines[-1]
    returns = [last.get("episode_return"), last.get("evaluation_return")]
    shown = next((f", return {number(x)}" for x in returns if x is not None), "")
    return (
        f"{'ended' if ended else 'running'}, batch {last['batch']}, iteration "
        f"{last['iteration']:,}, {last['env_steps']:,} {unit} in {last['seconds']:,.0f} s{shown}"
    )
