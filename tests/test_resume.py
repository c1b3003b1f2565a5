"""Runs in processes of their own are killed, by SIGKILL at any moment or by SIGTERM, and go on."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import arrays
from test_checkpoint import agents

import jaxrl
from jaxrl import Checkpoints

KILLS = 20
JAXRL = [sys.executable, "-m", "experiments.cli"]


def work(folder):
    """Train every kind of agent, alone and as a population, saving after every chunk."""

    def tell(progress):
        print(progress.iteration, flush=True)

    results = []
    for agent in agents(iterations=40):
        for seeds in (1, 3):
            part = Path(folder) / f"{agent.name}-{seeds}"
            checkpoints = Checkpoints(part, every=0) if folder else None
            run = jaxrl.sweep(agent, seeds=seeds, progress=tell, checkpoints=checkpoints)
            states = [arrays(run.select(i).state) for i in range(seeds)]
            results.append((states, run.metrics, run.env_steps))
    return results


def worker(folder, cache):
    code = (
        "import sys, pickle, jax; sys.path.insert(0, 'tests')\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "import test_resume\n"
        f"results = test_resume.work({str(folder)!r})\n"
        f"pickle.dump(results, open({str(folder / 'results.pkl')!r}, 'wb'))\n"
    )
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True
    )


@pytest.mark.slow
def test_killed_twenty_times_it_is_the_same_run(tmp_path):
    """SIGKILL at random moments, most of them during a save: saves take most of the time here."""
    whole = work("")
    folder, cache = tmp_path / "runs", tmp_path / "cache"
    folder.mkdir()
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:
        with worker(folder, cache) as process:
            assert process.stdout is not None
            if not process.stdout.readline():  # it was done before it could be killed
                assert process.wait() == 0
                break
            time.sleep(moments.uniform(0, 3))
            process.kill()
            process.wait()
            killed += 1
    assert killed == KILLS, "the runs are too short for so many kills"
    with worker(folder, cache) as process:
        process.communicate()
        assert process.returncode == 0
    with (folder / "results.pkl").open("rb") as file:
        again = pickle.load(file)
    for theirs, ours in zip(again, whole, strict=True):
        jax.tree.map(np.testing.assert_array_equal, theirs, ours)


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_go_on_and_does(which, tmp_path):
    words = ["train", "ppo", "CartPole-v1", "num_envs=4", "num_steps=16", "--episodes", "2"]
    out = tmp_path / "run"
    command = [*JAXRL, *words, "--steps", "2e6", "--out", str(out), "--checkpoint-every", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "steps/s" in line:
                process.send_signal(which)
                break
        error = process.stderr.read()
        assert process.wait(timeout=120) == 130
    assert f"interrupted; go on with: jaxrl train --resume {out}" in error
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"]
    assert 0 < summary["env_steps"] < 2e6

    def resume(*more):
        command = [*JAXRL, "train", "--resume", str(out), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert resume().returncode == 0
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["interrupted"]
    assert summary["env_steps"] == 2_000_000 // 64 * 64
    ended = resume()
    assert ended.returncode == 2
    assert "is finished: give --steps N" in ended.stderr
    assert resume("--steps", "2.1e6").returncode == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["env_steps"] == 2_100_000 // 64 * 64
