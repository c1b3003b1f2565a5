"""Two processes write run folders, again and again; a third reads them all the time."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.command.cli import main
from experiments.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

RESUMES = 4
STEPS = 64 * 60  # more at each resume: sixty iterations, a save after each
TRAIN = "train ppo CartPole-v1 num_envs=4 num_steps=16 num_minibatches=2 --seeds 2 --episodes 2"
WRITER = f"""
import sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
from experiments.command.cli import main
from jaxrl.training import schedule
schedule.SHORTEST = 0.0
more = ["--checkpoint-every", "0"]
status = [main([*{TRAIN!r}.split(), "--steps", "{STEPS}", "--out", sys.argv[1], *more])]
for i in range(2, {RESUMES} + 2):
    words = ["train", "--resume", sys.argv[1], "--steps", str(i * {STEPS}), *more]
    status.append(main(words))
sys.exit(max(status))
"""
NOT_YET = ("is not a run: it has no config.json", "nothing of it was saved yet")


@pytest.fixture
def writers(tmp_path):
    """Two processes that write each its folder; a failed test leaves none behind."""
    started = {
        tmp_path / name: subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / name)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"MPLBACKEND": "Agg"},
            text=True,
        )
        for name in ("a", "b")
    }
    yield started
    for writer in started.values():
        with writer:
            writer.kill()


def test_what_is_read_while_it_is_written_is_right(writers, capfd):
    seen, refused = [], []
    while any(writer.poll() is None for writer in writers.values()):
        for path in writers:
            for words in (["eval", "--episodes", "1"], ["plot"], ["watch"]):
                if main([*words, str(path)]) == 0:
                    assert capfd.readouterr().err == ""  # no warning of damage
                else:
                    error = capfd.readouterr().err
                    assert error.rstrip().endswith(NOT_YET), error
                    refused.append(error)
            with contextlib.suppress(ValueError):  # which the commands have told
                seen.append((path, RunFolder.open(path).metrics()))
    for writer in writers.values():
        _, error = writer.communicate()
        assert writer.returncode == 0, error
    final = {path: RunFolder.open(path).metrics() for path in writers}
    lengths = set()
    for path, metrics in seen:
        length = metrics["steps"].shape[1]
        lengths.add((path, length))
        for name in ("steps", "episode_return", "loss"):
            if name in metrics:
                np.testing.assert_array_equal(metrics[name], final[path][name][:, :length])
    assert len(lengths) > 2 * RESUMES  # also in the middle of runs
    assert {path for path, _ in lengths} == set(writers)
    assert refused  # it was there before they were
