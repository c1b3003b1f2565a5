"""ABS at work: divergence, rollout length and return over steps, beside fixed lengths.

`python -m experiments.studies.abs_lengths [ENV] [--steps N] [--seeds N]` trains the ABS recipe of an
environment (Breakout-MinAtar) with its adaptive length and with the lengths 16, 32 and 64 held
fixed, and writes experiments/results/abs-lengths/ENV.png and ENV.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "results" / "abs-lengths"
FIXED = (16, 32, 64)
PANELS = {
    "divergence": "behavioural divergence",
    "rollout_length": "rollout length",
    "episode_return": "return of training episodes",
}
BINS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("env", nargs="?", default="Breakout-MinAtar")
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()

    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    from experiments.command import launch, report
    from jaxrl.report.stats import mean_ci

    seeds = range(args.seeds)
    agent = launch.assemble("abs", args.env, [], steps=args.steps, seeds=seeds, sweep=False).agent
    settings: dict[str, dict[str, Any]] = {"adaptive": {}}
    settings |= {f"fixed {n}": {"min_steps": n, "max_steps": n} for n in FIXED}

    curves: dict[str, Any] = {}
    results: dict[str, Any] = {"env": args.env, "steps": args.steps, "seeds": args.seeds}
    with report.Meter(len(settings) * args.seeds * args.steps) as meter:
        for label, setting in settings.items():
            # Two members at a time, one a device: trip counts differ with the length, and members
            # of one vmapped loop would all wait for the slowest.
            population = jaxrl.sweep(
                agent.replace(**setting), seeds=args.seeds, batch_size=2, callbacks=[meter]
            ).whole()
            final = population.evaluate().returns.mean(axis=1)
            mean, low, high = mean_ci(final)
            results[label] = {
                "final_return_mean": float(mean),
                "final_return_ci95": [float(low), float(high)],
                "final_returns": final.tolist(),
                "run_seconds": population.run_seconds,
            }
            meter.say(f"{label}: {report.number(float(mean))} [{low:.2f}, {high:.2f}]")
            curves[label] = {
                name: binned(
                    population.history.env_steps, population.history.metrics[name], args.steps
                )
                for name in PANELS
            }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{args.env}.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(curves, args, FOLDER / f"{args.env}.png")


def binned(env_steps: np.ndarray, values: np.ndarray, total: int) -> np.ndarray:
    """Means (members, BINS) of what was measured in each equal span of steps, NaN where nothing."""
    result = np.full((len(values), BINS), np.nan)
    for row, x, y in zip(result, env_steps, values, strict=True):
        seen = np.isfinite(x) & np.isfinite(y)
        place = np.clip((x[seen] / total * BINS).astype(int), 0, BINS - 1)
        count = np.bincount(place, minlength=BINS)
        row[count > 0] = np.bincount(place, y[seen], BINS)[count > 0] / count[count > 0]
    return result


def draw(curves: dict[str, Any], args: argparse.Namespace, path: Path) -> None:
    """A panel per quantity, a line per setting: mean over seeds and its 95 % t interval."""
    from matplotlib.figure import Figure

    from jaxrl.report.stats import mean_ci

    figure = Figure(figsize=(12, 3.8), dpi=130, layout="constrained")
    steps = (np.arange(BINS) + 0.5) / BINS * args.steps
    for axes, (name, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for setting, values in curves.items():
            mean, low, high = mean_ci(values[name])
            seen = np.isfinite(mean)
            axes.plot(steps[seen], mean[seen], label=setting, linewidth=1.6)
            axes.fill_between(steps[seen], low[seen], high[seen], alpha=0.15, linewidth=0)
        axes.set(xlabel="environment steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize="small")
    figure.suptitle(f"ABS on {args.env}, {args.seeds} seeds")
    figure.savefig(path)


if __name__ == "__main__":
    main()
