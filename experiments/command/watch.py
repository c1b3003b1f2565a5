"""The curves of a run in the terminal, while it runs or after it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command.report import number
from experiments.runs import curves, runs
from jaxrl.report import plots


def watch(folder: Path, every: float) -> None:
    """Draw the curves every so many seconds until the run has ended, and refresh curve.png.

    Where standard output is no terminal they are drawn once.

    Raises: ValueError where `folder` holds no run, or curve.png cannot be written.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not a run: it has no config.json")
    live = sys.stdout.isatty()
    while True:
        ended = (folder / "summary.json").exists()
        lines = read(folder / "log.jsonl")
        text = f"{folder}: {state(lines, ended)}"
        found = of_log(lines)
        if found:
            text = f"{drawing(found)}\n{text}"
            if ended:
                curves.draw([runs.open_run(folder)], folder / "curve.png")
            else:
                title = "mean over members"
                plots.save(plots.learning_curves(found, title=title), folder / "curve.png")
        if live:
            print("\x1b[2J\x1b[H", end="")  # a clear screen
        print(text, flush=True)
        if ended or not live:
            return
        time.sleep(every)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl that are whole; a run that goes on may be writing the last."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def of_log(lines: list[dict[str, Any]]) -> list[plots.Curve]:
    """Mean returns of training episodes, or of evaluations, over a member's steps, by batch."""
    name = "episode_return" if any("episode_return" in x for x in lines) else "evaluation_return"
    found = []
    for batch in sorted({batch_of(line) for line in lines}):
        # What a resumed run did again stands there twice: the last of each iteration holds.
        of_batch = {line["iteration"]: line for line in lines if batch_of(line) == batch}
        points = [
            (line["env_steps"] / line["members"], line[name])
            for _, line in sorted(of_batch.items())
            if line.get(name) is not None
        ]
        if len(points) > 1:
            steps, returns = np.asarray(points).T
            found.append(plots.Curve(f"batch {batch}", steps, returns[None]))
    return found


def batch_of(line: dict[str, Any]) -> int:
    """The number of a line's batch, which runs of before called its program."""
    return int(line["batch"] if "batch" in line else line["program"])


def drawing(found: list[plots.Curve]) -> str:
    """The curves in characters."""
    import plotext

    plotext.clear_figure()
    plotext.plotsize(100, 24)
    plotext.theme("clear")
    for curve in found:
        label = curve.label if len(found) > 1 else None
        plotext.plot(curve.steps.tolist(), curve.returns[0].tolist(), label=label)
    plotext.xlabel("steps of a member")
    plotext.ylabel("return")
    drawn: str = plotext.uncolorize(plotext.build())
    return drawn.rstrip()


def state(lines: list[dict[str, Any]], ended: bool) -> str:
    """Where the run stands, in a line."""
    if not lines:
        return "nothing to show yet"
    last = lines[-1]
    returns = [x for x in (last.get("episode_return"), last.get("evaluation_return")) if x]
    shown = f", return {number(returns[0])}" if returns else ""
    return (
        f"{'ended' if ended else 'running'}, batch {batch_of(last)}, iteration "
        f"{last['iteration']:,}, {last['env_steps']:,} steps in {last['seconds']:,.0f} s{shown}"
    )
