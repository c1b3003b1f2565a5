"""Runs in processes of their own are killed, by SIGKILL at any moment or by SIGTERM, and go on."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl import Checkpoints
from tests.helpers import arrays
from tests.training.test_checkpoint import agents

pytestmark = pytest.mark.usefixtures("compiled_quickly")

JAXRL = [sys.executable, "-m", "experiments.command.cli"]
RUNS, KILLS = (0, 3, 4, 7), 2  # one of each kind, and for each; `tests.hardship` has more of them


def work(number, folder=None):
    """A run of four kinds of agents, each alone and as a population, saved after every chunk."""
    agent, seeds = agents(iterations=40)[number // 2], (1, 3)[number % 2]
    run = jaxrl.sweep(
        agent,
        seeds=seeds,
        callbacks=[lambda progress: print(progress.iteration, flush=True)],
        checkpoints=Checkpoints(folder, every=0) if folder else None,
    )
    states = [arrays(run[i].state) for i in range(seeds)]
    return states, run.history.metrics, run.history.env_steps


def worker(number, folder, cache):
    code = (
        "import sys, pickle, pathlib, jax\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "from jaxrl.training import schedule\n"
        "from tests.training import test_resume\n"
        "schedule.SHORTEST = 0.0\n"  # a save for each iteration
        f"folder = pathlib.Path({str(folder)!r})\n"
        f"result = test_resume.work({number}, folder)\n"
        "(folder / 'result.pkl').write_bytes(pickle.dumps(result))\n"
    )
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", RUNS)
def test_killed_at_any_moment_it_is_the_same_run(number, tmp_path):
    assert survive_kills(number, KILLS, 1.5, tmp_path) == KILLS


def survive_kills(number, kills, wait, folder):
    """SIGKILL, most times during a save: saves take most of the time here.

    Each up to `wait` seconds after the first chunk that a process has done. A process that has
    ended by then is one that was not killed; returns how many were.
    """
    moments, done = random.Random(number), 0
    for _ in range(kills):
        with worker(number, folder / "run", folder / "cache") as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                break
            time.sleep(moments.uniform(0, wait))
            process.kill()
        done += process.returncode == -signal.SIGKILL
    with worker(number, folder / "run", folder / "cache") as process:
        process.communicate()
        assert process.returncode == 0
    again = pickle.loads((folder / "run" / "result.pkl").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, again, work(number))
    return done


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_go_on_and_does(which, tmp_path):
    words = ["train", "ppo", "CartPole-v1", "num_envs=4", "num_steps=16", "--episodes", "2"]
    out = tmp_path / "run"
    command = [*JAXRL, *words, "--steps", "1e5", "--out", str(out), "--checkpoint-every", "0"]
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
    assert 0 < summary["env_steps"] < 1e5

    def resume(*more):
        command = [*JAXRL, "train", "--resume", str(out), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert resume().returncode == 0
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["interrupted"]
    assert summary["env_steps"] == 100_000 // 64 * 64
    ended = resume()
    assert ended.returncode == 2
    assert "is finished: give --steps N" in ended.stderr
    assert resume("--steps", "1.1e5").returncode == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["env_steps"] == 110_000 // 64 * 64


FULL = """
import sys
import pathlib
import jaxrl
from jaxrl.training import schedule
from tests.helpers import assert_same
from tests.training.test_checkpoint import files, toy

schedule.SHORTEST = 0.0  # a save for each iteration

folder = pathlib.Path(sys.argv[1])
checkpoints = jaxrl.Checkpoints(folder / "run", every=0)

def fill():
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            pass

def progress(report):
    if report.iteration == 8:
        fill()
    if report.iteration == 14:
        kept.extend(files(folder / "run"))
        (folder / "filling").unlink()

kept = []
run = jaxrl.train(toy(), callbacks=[progress], checkpoints=checkpoints)
assert {"6", "7"} & set(kept), kept
whole = jaxrl.train(toy())
assert_same(run.state, whole.state)
assert_same(jaxrl.train(toy(iterations=25), checkpoints=checkpoints).state,
            jaxrl.train(toy(iterations=25)).state)
fill()
try:
    jaxrl.train(toy(), checkpoints=jaxrl.Checkpoints(folder / "another"))
except ValueError as error:
    print(error)
"""


def mounted(options, folder, *command):
    """Run a command with a small file system of its own mounted on a folder."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount")
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", script, "sh", options, str(folder), *command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_disk_that_is_full_to_the_last_byte(tmp_path):
    """What was saved stays, saving goes on once there is space, and a new run says it first."""
    done = mounted("size=2m", tmp_path, sys.executable, "-c", FULL, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "what was saved before stays" in done.stderr
    assert f"cannot write to {tmp_path / 'another'}: No space left on device" in done.stdout


@pytest.mark.slow
def test_a_read_only_folder_is_found_before_anything_compiles(tmp_path):
    command = [*JAXRL, "train", "ppo", "CartPole-v1", "--out", str(tmp_path / "run")]
    done = mounted("ro", tmp_path, *command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"cannot write to {tmp_path / 'run'}: Read-only file system" in done.stderr
