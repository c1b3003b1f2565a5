"""The figures of the pages that no kept result has: a small sweep is trained for them.

`make docs` runs it, which draws what docs/figures lacks: remove a file to have it drawn anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent / "figures"

# Figure -> what `jaxrl` trains for it, and which of the run folder's figures it is. The README's,
# which is kept, is that of `make demo`; the other takes seconds.
DEMO = "sweep ppo CartPole-v1 learning_rate=log:1e-4:1e-2:16 --seeds 4 --steps 100000"
GRID = (
    "sweep ppo CartPole-v1 learning_rate=log:3e-4:1e-2:4 gae_lambda=0.5,0.8,0.95 --seeds 2 "
    "--steps 30000"
)
FIGURES = {
    "sweep.png": (DEMO, "sweep.png"),
    "grid.png": (GRID, "sweep.png"),
}


def main() -> int:
    """Train and draw what is missing; returns the exit status of a command that failed."""
    HERE.mkdir(exist_ok=True)
    missing = {name: made for name, made in FIGURES.items() if not (HERE / name).exists()}
    for command in {command for command, _ in missing.values()}:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "jaxrl", *command.split(), "--out", f"{folder}/run"]
            run = subprocess.run(words, cwd=HERE.parents[1], stdout=subprocess.DEVNULL)
            if run.returncode:
                return run.returncode
            for name, (other, figure) in missing.items():
                if other == command:
                    shutil.copy(Path(folder) / "run" / figure, HERE / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
