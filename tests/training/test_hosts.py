"""Several processes run one sweep: on the loopback address, with a CPU device each."""

import os
import pickle
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl.training import hosts
from tests.training.test_checkpoint import agents

pytestmark = pytest.mark.usefixtures("compiled_quickly")

JAXRL = [sys.executable, "-m", "experiments.command.cli"]
WORDS = ["sweep", "ppo", "CartPole-v1", "learning_rate=1e-4,1e-3,3e-3", "--seeds", "2"]
WORDS += ["num_envs=4", "num_steps=16", "--episodes", "2", "--evaluations", "2"]


def start(words, log):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    with log.open("w") as file:
        return subprocess.Popen([*JAXRL, *words], env=env, stdout=file, stderr=file)


def start_two(words, folder):
    peers = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
    logs = [folder / "0.log", folder / "1.log"]
    return [start([*words, *peers, str(i)], logs[i]) for i in (0, 1)], logs


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def arrays(folder):
    with np.load(folder / "metrics.npz") as file:
        return dict(file)


def work(batch_size=None):
    """Metrics, returns and states of six members."""
    agent = agents(iterations=40)[0]
    rates = {"learning_rate": [1e-3, 3e-3, 1e-2]}
    run = jaxrl.sweep(agent, rates, seeds=2, evaluations=2, episodes=4, batch_size=batch_size)
    states = [hosts.to_numpy(run[i].state) for i in range(6)]
    return (
        run.history.metrics,
        run.history.env_steps,
        run.history.evaluations,
        run.evaluate(4).returns,
        states,
    )


def result(path, batch_size=None, peers=None):
    """Start a process that does `work` on one device and leaves the result in a file."""
    join = f"from jaxrl import hosts; hosts.connect{peers!r}\n" if peers else ""
    code = (
        f"import sys, pickle\n{join}"
        "from tests.training import test_hosts\n"  # which starts JAX
        f"result = test_hosts.work({batch_size})\n"
        f"open({str(path)!r}, 'wb').write(pickle.dumps(result))\n"
    )
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=env)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Bit for bit where that one trains the same members at once: three and three."""
    address = f"127.0.0.1:{free_port()}"
    found = [tmp_path / str(i) for i in range(3)]
    processes = [result(found[i], peers=(address, 2, i)) for i in (0, 1)]
    processes.append(result(found[2], batch_size=3))
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    first, second, alone = [pickle.loads(path.read_bytes()) for path in found]
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, first, alone)


LONG = [*WORDS, "--steps", "4e4", "--checkpoint-every", "1", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes leave that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    two, logs = start_two([*LONG, str(folder / "run")], folder)
    assert [process.wait(timeout=200) for process in two] == [0, 0], logs[0].read_text()
    return arrays(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_the_other_says_so_and_the_run_goes_on(victim, whole, tmp_path):
    out = tmp_path / "run"
    two, logs = start_two([*LONG, str(out)], tmp_path)
    while not re.search(r" [2-8]\d%", logs[0].read_text()):
        assert two[0].poll() is None, logs[0].read_text()
        time.sleep(0.1)
    two[victim].kill()
    survivor = 1 - victim
    assert two[survivor].wait(timeout=100) != 0
    text = logs[survivor].read_text()
    assert "another process of this run is gone" in text or "another task died" in text
    two[victim].wait()
    two, logs = start_two(["sweep", "--resume", str(out)], tmp_path)
    assert [process.wait(timeout=200) for process in two] == [0, 0], logs[0].read_text()
    assert "final return over 2 seeds" in logs[0].read_text()
    assert "final return" not in logs[1].read_text()  # one of them reports
    jax.tree.map(np.testing.assert_array_equal, arrays(out), whole)


def test_what_does_not_belong_together_is_refused():
    words = [*WORDS, "--num-processes", "2"]
    done = subprocess.run([*JAXRL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--coordinator, --num-processes and --process-id belong together" in done.stderr


def test_of_one_process_everything_is_its_own():
    tree = {"a": np.ones(3), "key": jax.random.split(jax.random.key(1), 3)}
    assert hosts.gather(tree) is tree
    assert hosts.of_writer(tree) is tree
    assert hosts.is_writer()
    words = hosts.to_numpy(tree)
    assert words["key"].shape == (3, 2)
    back = hosts.from_numpy(words, tree)
    assert (back["key"] == tree["key"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["halving", "pbt"])
def test_a_search_over_two_processes_is_that_of_one(method, tmp_path):
    words = ["sweep", "tests.training.tuned:Tuned", "tests.probes:ActionChoice", "--steps", "160"]
    words += {
        "halving": ["rate=log:1e-6:1e-1:11", "--halving", "3"],
        "pbt": ["rate=log:1e-5:1", "--random", "5", "--pbt", "0.4", "--pbt-every", "16"],
    }[method]
    words += ["--episodes", "2"]
    alone = start([*words, "--out", str(tmp_path / "alone")], tmp_path / "alone.log")
    assert alone.wait(timeout=120) == 0
    both, logs = start_two([*words, "--out", str(tmp_path / "both")], tmp_path)
    assert [process.wait(timeout=120) for process in both] == [0, 0], logs[1].read_text()
    for name, values in arrays(tmp_path / "alone").items():
        np.testing.assert_allclose(arrays(tmp_path / "both")[name], values, rtol=1e-6, err_msg=name)
