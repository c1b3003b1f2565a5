"""What the tests do a few times, done often: kills, damages, races. By hand, not by pytest.

python -m tests.hardship kills 100      # SIGKILLs over eight runs, each bit for bit the same
python -m tests.hardship damages 400    # of a file of a checkpoint's folder, at random
python -m tests.hardship starts 300     # of two processes each, that want the same folder
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import jax


def kills(number: int, folder: Path) -> str:
    from tests.training.test_resume import survive_kills

    runs, done = 8, 0
    for run in range(runs):
        (folder / str(run)).mkdir()
        done += survive_kills(run, len(range(run, number, runs)), 0.2, folder / str(run))
    return f"{done} of {number} processes were killed; all {runs} runs are bit for bit the same"


def damages(number: int, folder: Path) -> str:
    import numpy as np

    import jaxrl
    from tests.helpers import assert_same
    from tests.training.test_checkpoint import Killed, kill_at, toy

    kept, agent, moments = folder / "kept", toy(iterations=6), random.Random(0)
    with contextlib.suppress(Killed):
        jaxrl.train(agent, callbacks=[kill_at(5)], checkpoints=jaxrl.Checkpoints(kept, every=0))
    whole = jaxrl.train(agent)
    names = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file()]
    starts: collections.Counter[int] = collections.Counter()
    lost: collections.Counter[int] = collections.Counter()
    for _ in range(number):
        shutil.copytree(kept, folder / "damaged")
        path = folder / "damaged" / moments.choice(names)
        damage(path, moments)
        reports: list[jaxrl.Progress] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoints = jaxrl.Checkpoints(folder / "damaged")
            again = jaxrl.train(agent, callbacks=[reports.append], checkpoints=checkpoints)
        assert_same(again.state, whole.state)
        assert_same(again.history.env_steps, whole.history.env_steps)
        starts[reports[0].first] += 1
        lost[int(np.isnan(again.history.metrics["weight"]).sum())] += 1
        shutil.rmtree(folder / "damaged")
    assert max(starts) - min(starts) <= 1, starts
    assert max(lost) <= 1, lost
    return f"went on from iteration {dict(starts)}, rows of metrics lost {dict(lost)}"


def damage(path: Path, moments: random.Random) -> None:
    """Cut a file, flip one of its bits, put other bytes into it, or remove it."""
    content = bytearray(path.read_bytes())
    at = moments.randrange(max(len(content), 1))
    how = moments.choice(["cut", "flip", "fill", "remove"])
    if how == "remove":
        path.unlink()
        return
    if how == "cut" or not content:
        content = content[:at]
    elif how == "flip":
        content[at] ^= 1 << moments.randrange(8)
    else:
        content[at : at + 16] = moments.randbytes(len(content[at : at + 16]))
    path.write_bytes(content)


def starts(number: int, folder: Path) -> str:
    context = multiprocessing.get_context("spawn")
    barrier, owners = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=claim, args=(i, number, folder, barrier, owners)) for i in range(2)
    ]
    for process in processes:
        process.start()
    owned = [owners.get() for _ in range(2)]
    for process in processes:
        process.join()
    by_both, by_none = owned[0] & owned[1], set(range(number)) - owned[0] - owned[1]
    assert not by_both, by_both
    assert not by_none, by_none
    return f"{len(owned[0])} folders went to one process, {len(owned[1])} to the other"


def claim(name, number, folder, barrier, owners) -> None:
    """Want each of the folders at the moment at which the other process does."""
    from experiments.command.assemble import Request, assemble
    from experiments.runs.folder import RunFolder

    experiment, owned = assemble(Request("ppo", "CartPole-v1", steps=1024)), set()
    for i in range(number):
        barrier.wait()
        try:
            with RunFolder.create(folder / str(i), experiment, f"process {name}") as run:
                run.log.touch()
                barrier.wait()
            assert RunFolder.open(run.path).config["command"] == f"process {name}"
            owned.add(i)
        except ValueError:  # the other has it
            barrier.wait()
    owners.put(owned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kills", "damages", "starts"])
    parser.add_argument("number", type=int)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    with tempfile.TemporaryDirectory() as folder:
        print(globals()[args.what](args.number, Path(folder)))


if __name__ == "__main__":
    main()
