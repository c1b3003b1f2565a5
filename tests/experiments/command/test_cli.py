"""The `jaxrl` command: bad input, folders it leaves alone, help and listings."""

import subprocess
import sys
import time

import pytest

import agents
import envs_jax
from experiments.command.cli import main

JAXRL = [sys.executable, "-m", "experiments.command.cli"]


def refuse(*args, **kwargs):
    raise AssertionError("bad input reached the engine")


BAD_INPUT = [
    ("train pp CartPole-v1", "unknown agent 'pp'; did you mean ppo"),
    ("train ppo CartPole", "unknown environment 'CartPole'; did you mean CartPole-v1"),
    ("train ppo CartPole-v1 learning_rat=1", "no hyper-parameter 'learning_rat'; did you mean lea"),
    ("train ppo CartPole-v1 lr=1", "no hyper-parameter 'lr'; did you mean learning_rate?"),
    ("train ppo CartPole-v1 zzz=1", "no hyper-parameter 'zzz'; `jaxrl list ppo` shows all"),
    ("train ppo CartPole-v1 env.gravty=1", "unknown option 'gravty'"),
    ("train ppo brax/reacher env.backend=sprin", "unknown backend 'sprin'; did you mean spring"),
    ("train ppo CartPole-v1 learning_rate=-1", "learning_rate=-1.0 is outside"),
    ("train ppo CartPole-v1 learning_rate=nan", "learning_rate=nan is outside"),
    ("train ppo CartPole-v1 learning_rate=fast", "learning_rate=fast is not a number"),
    ("train ppo CartPole-v1 num_envs=2.5", "num_envs=2.5 is not a whole number"),
    ("train ppo CartPole-v1 normalize_rewards=yes", "is not true or false"),
    ("train ppo CartPole-v1 hidden_sizes=64,64", "takes one value"),
    ("train ppo CartPole-v1 network=rnn", "network='rnn' is not one of"),
    ("train ppo CartPole-v1 env.gravity=down", "env.gravity=down is not a number"),
    ("train ppo CartPole-v1 gamma", "'gamma' is not of the form key=value"),
    ("train ppo CartPole-v1 gamma=1 gamma=0", "gamma is given twice"),
    ("train ppo CartPole-v1 total_steps=1e5 --steps 1e5", "are the same"),
    ("train ppo CartPole-v1 --steps 8", "total_steps=8 is smaller than one iteration"),
    ("train ppo CartPole-v1 --steps 0", "0 is too small"),
    ("train ppo CartPole-v1 --steps some", "some is not a whole number"),
    ("train ppo CartPole-v1 --seeds 0", "at least one seed"),
    ("train ppo CartPole-v1 --seed 1 --seeds 2", "not allowed with"),
    ("train ppo CartPole-v1 num_minibatches=7", "num_minibatches=7 does not divide"),
    ("train ppo CartPole-v1 --fast", "unrecognized arguments: --fast"),
    ("train pqn Pendulum-v1", "needs discrete actions"),
    ("sweep ppo CartPole-v1", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:0.99:0", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=0.9,0.99 --random 0", "the grid is empty"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:0.99", "or lin:low:high:n"),
    ("sweep ppo CartPole-v1 gamma=lin:0.5:1.5:3", "gamma=1.5 is outside"),
    ("sweep ppo CartPole-v1 gamma=lin:0.9:2 --random 3", "gamma=2.0 is outside"),
    ("sweep ppo CartPole-v1 gamma=lin:1:0:3", "from low to high"),
    ("sweep ppo CartPole-v1 learning_rate=log:0:1:3", "ends above 0"),
    ("sweep ppo CartPole-v1 num_minibatches=4,7", "num_minibatches=7 does not divide"),
    ("train ppo CartPole-v1 --data a.hdf5", "ppo does not learn from recorded data"),
    ("train bc CartPole-v1 --data none.hdf5", "none.hdf5: no such file"),
    ("train bc CartPole-v1 --data-steps 9", "--data-steps 9 has no effect without --data"),
    ("sweep --resume missing --data-steps 3", "--data-steps: --resume goes on with the settings"),
    ("train bc CartPole-v1", "bc: learns from recorded data only: give it --data FILE"),
    ("train cql Pendulum-v1 --evaluations 0", "0 is too small"),
    ("train ppo", "required: AGENT, ENV"),
    ("train ppo CartPole-v1 --keep 0", "0 is too small"),
    ("train ppo CartPole-v1 --checkpoint-every -1", "-1 is not a whole number"),
    ("train --resume missing", "missing is not a run: it has no config.json"),
    ("train ppo CartPole-v1 --resume missing", "ppo CartPole-v1: --resume goes on with the set"),
    ("sweep --resume missing --seeds 3", "--seeds: --resume goes on with the settings"),
    ("collect bc CartPole-v1", "bc: learns from recorded data only"),
    ("collect ppo CartPole-v1 gamma=2", "gamma=2.0 is outside"),
    ("collect ppo CartPole-v1 --size 0", "0 is too small"),
    ("eval .", "is not a run"),
    ("plot missing", "missing is not a run"),
    ("list qqq", "unknown agent 'qqq'; `jaxrl list agents` shows all"),
    ("train ppo CartPole-v1 --record cost,", "cost, is not a list of names"),
    ("train ppo CartPole-v1 --memory lots", "lots is not a number of bytes"),
    ("watch missing", "missing is not a run"),
    ("train ppo CartPole-v1 --seeds 5e9", "5e9 is too large, it must be at most 4,294,967,295"),
    ("train ppo CartPole-v1 --seeds 2e5", "200,000 members are too many for a sweep: at most 100,"),
    ("sweep ppo CartPole-v1 gamma=lin:0.1:0.9:1e12", "1,000,000,000,000 settings are too many"),
    (
        "sweep ppo CartPole-v1 gamma=lin:.1:.9:1e4 gae_lambda=lin:.1:.9:1e4",
        "100,000,000 settings are too many for a sweep",
    ),
    ("sweep ppo CartPole-v1 gamma=lin:.1:.9:9e4 --seeds 9", "810,000 members are too many"),
    ("sweep ppo CartPole-v1 gamma=lin:.1:.9 --random 1e9", "1,000,000,000 settings are too many"),
    ("train ppo CartPole-v1 num_epochs=1e18", "outside [1, 2147483647]"),
    ("train dqn CartPole-v1 buffer_size=1e18", "outside [1, 2147483647]"),
    ("train ppo CartPole-v1 hidden_sizes=64x1e12", "outside [1, 2147483647]"),
    (
        "train ppo CartPole-v1 learning_rate=1e300",
        "is no number in single precision, which",
    ),
    (
        "train ppo CartPole-v1 learning_rate=1e-60",
        "is no number in single precision, which",
    ),
    ("train ppo CartPole-v1 env.max_steps_in_episode=3e9", "must be int32 of shape ()"),
    ("train ppo CartPole-v1 env.gravity=1e300", "must be float32 of shape ()"),
    ("train ppo CartPole-v1 --episodes 1e15", "is too large"),
    ("train ppo CartPole-v1 --episodes 1e7", "1e7 is too large, it must be at most 1,000,000"),
    ("train ppo CartPole-v1 --evaluations 1e12", "is too large"),
    ("train ppo CartPole-v1 env.sticky=often", "sticky='often' is not a number"),
    ("train ppo CartPole-v1 env.sticky=inf", "sticky=inf is not a number"),
    ("train ppo brax/ant env.ctrl_cost_weight=much", "ctrl_cost_weight='much' is not a number"),
    ("train ppo brax/ant env.terminate_when_unhealthy=3", "=3 is not true or false"),
    ("train ppo DeepSea-bsuite env.size=0", "DeepSea-bsuite: {'size': 0} cannot be: "),
    ("train ppo DeepSea-bsuite env.size=1e9", "size=1000000000 is not a whole number from 0 to"),
    ("train ppo DeepSea-bsuite env.size=much", "size='much' is not a whole number from 0 to"),
    ("learn", "invalid choice: 'learn'"),
    ("", "required: COMMAND"),
]


@pytest.mark.parametrize(("words", "message"), BAD_INPUT)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxrl.sweep", refuse)
    try:
        status = main(words.split())
    except SystemExit as stop:  # argparse's own
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("jaxrl: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unwritable_folder_is_found_before_compiling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    (tmp_path / "file").touch()
    assert main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_run_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrl.sweep", refuse)
    with pytest.raises(AssertionError, match="reached the engine"):
        main(["train", "ppo", "CartPole-v1", "--out", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["list", "agents"]])
def test_help_and_listings_answer_at_once(words):
    heavy = ["jax", "numpy", "matplotlib", "scipy", "gymnax"]
    code = (
        "import sys; from experiments.command.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    assert "ppo" in result.stdout or "train" in result.stdout
    assert time.perf_counter() - start < 1.5


def test_exit_status_of_the_process():
    result = subprocess.run([*JAXRL, "list", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("jaxrl: error: unknown agent 'nothing'")
    assert result.stdout == ""


@pytest.mark.parametrize("what", ["agents", "envs", "recipes", *agents.AGENTS])
def test_list(what, capsys):
    assert main(["list", what]) == 0
    expected = {"agents": agents.AGENTS, "envs": envs_jax.list_envs(), "recipes": ["CartPole-v1"]}
    shown = capsys.readouterr().out
    assert all(name in shown for name in expected.get(what, ["total_steps", "static", "traced"]))


def test_list_shows_what_an_environment_takes(capsys):
    assert main(["list", "CartPole-v1"]) == 0
    shown = capsys.readouterr().out
    assert "observation (4,), action Discrete(2), time limit 500" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[2:] if line.strip()}
    assert rows["gravity"] == ["traced", "9.8"]
    assert rows["sticky"] == ["static", "0"]


def test_listings_show_brackets_as_they_are(capsys):
    """rich takes what stands in brackets for markup unless it is told not to."""
    assert main(["list", "softgac"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "input_norm" in x)
    assert "LayerNorm of [obs, z]" in line


def test_agents_are_listed_with_the_first_line_of_their_docstrings(capsys):
    assert main(["list", "agents"]) == 0
    shown = capsys.readouterr().out
    for name in agents.AGENTS:
        first = (agents.get(name).__doc__ or "").splitlines()[0]
        assert agents.describe(name) == first
        assert first in shown
