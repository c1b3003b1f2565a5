"""What SAC, mixture SAC and SoftGAC make of a bandit with two peaks, at several temperatures.

`python -m experiments.studies.two_peaks [--steps N] [--seeds N]` trains each with its temperature held
fixed, all temperatures and seeds of one in one program, and writes two-peaks.png and
two-peaks.json into experiments/results/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()

    import jaxrl

    jaxrl.use_all_cores()  # before gymnax is imported, which starts JAX
    from experiments.studies.bandit import TEMPERATURES, actions_of, draw, learn, measure

    results: dict[str, Any] = {"steps": args.steps, "seeds": args.seeds}
    first_seed = {}
    for name, population in learn(args.steps, args.seeds).items():
        actions = actions_of(population).reshape(len(TEMPERATURES), args.seeds, -1)
        first_seed[name] = actions[:, 0]
        results[name] = {}
        for temperature, of_seeds in zip(TEMPERATURES, actions, strict=True):
            measures = [measure(samples, temperature) for samples in of_seeds]
            results[name][str(temperature)] = {
                key: [round(m[key], 4) for m in measures] for key in measures[0]
            }
            means = {key: float(np.mean([m[key] for m in measures])) for key in measures[0]}
            print(name, temperature, {key: round(value, 3) for key, value in means.items()})
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "two-peaks.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(first_seed).savefig(FOLDER / "two-peaks.png")


if __name__ == "__main__":
    main()
