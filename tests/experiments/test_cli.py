"""The `jaxrl` command: bad input, and a small run through all of its commands."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import agents
import envs_jax
import jaxrl
from experiments.command import launch, parse
from experiments.command.cli import main
from experiments.command.report import Meter
from experiments.runs import runs
from jaxrl import Progress
from jaxrl.training.search import Lin, Log

JAXRL = [sys.executable, "-m", "experiments.command.cli"]
TINY = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "256", "--episodes", "3"]


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
    ("list qqq", "unknown agent 'qqq'"),
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


@pytest.mark.parametrize(
    ("text", "kind", "random", "expected"),
    [
        ("1e5", int, False, [100_000]),
        ("1_000,2e3", int, False, [1000, 2000]),
        ("64x64,32", tuple, False, [(64, 64), (32,)]),
        ("true,False", bool, False, [True, False]),
        ("tanh,relu", str, False, ["tanh", "relu"]),
        ("1,2", float, False, [1.0, 2.0]),
        ("lin:0:1:3", float, False, [0.0, 0.5, 1.0]),
        ("log:1:100:3", int, False, [1, 10, 100]),
        ("lin:1:2:3", int, False, [1, 2, 2]),
        ("log:1e-4:1e-2", float, True, Log(1e-4, 1e-2, 1)),
        ("lin:0:1:9", float, True, Lin(0.0, 1.0, 9)),
    ],
)
def test_axis(text, kind, random, expected):
    found = parse.axis("x", text, kind, None, random)
    assert list(map(type, found)) == list(map(type, expected))
    assert found == (pytest.approx(expected) if kind is float else expected)


def test_words_behind_options_are_settings(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "experiments.command.cli.run", lambda args, **_: seen.update(vars(args)) or 0
    )
    main(["train", "ppo", "CartPole-v1", "gamma=0", "--steps", "1e3", "learning_rate=1"])
    assert seen["settings"] == ["gamma=0", "learning_rate=1"]
    assert seen["steps"] == 1000


def test_environment_options_and_parameters():
    experiment = launch.assemble(
        "ppo",
        "CartPole-v1",
        ["env.gravity=5,20", "env.sticky=0.25", "num_envs=8,4", "env.masscart=2"],
        steps=None,
        seeds=[0],
        sweep=True,
    )
    assert experiment.env_options == {"sticky": 0.25}
    assert float(experiment.agent.env_params.masscart) == 2
    assert experiment.settings == [
        {"env.gravity": g, "num_envs": n} for g in (5.0, 20.0) for n in (8, 4)
    ]


def test_random_search_has_no_setting_twice():
    experiment = launch.assemble(
        "ppo",
        "CartPole-v1",
        ["activation=tanh,relu", "num_steps=log:16:17", "num_envs=4,4"],
        steps=None,
        seeds=[0],
        sweep=True,
        random=30,
    )
    settings = [tuple(setting.values()) for setting in experiment.settings]
    assert len(set(settings)) == len(settings) == 4  # 2 activations x 2 whole numbers
    assert all(type(setting["num_steps"]) is int for setting in experiment.settings)


def test_progress_adds_up_programs(capsys):
    meter = Meter(total_steps=400)
    for iteration, iterations, env_steps in [(1, 1, 100), (1, 2, 100), (2, 2, 200), (3, 9, 120)]:
        metrics = {"episode_return": float("nan")}
        meter(Progress(iteration, iterations, env_steps, 200, 1.0, metrics, {}, [0], 0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["25%", "50%", "75%", "100%"]


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """A sweep of a static and a traced hyper-parameter and an environment's: 8 settings."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    grid = ["learning_rate=log:1e-4:1e-2:2", "activation=tanh,relu", "env.gravity=5,9.8"]
    command = ["sweep", "ppo", "CartPole-v1", *grid, *TINY, "--seeds", "2", "--out", str(folder)]
    assert main(command) == 0
    return folder


def test_run_folder(sweep_folder):
    config = json.loads((sweep_folder / "config.json").read_text())
    summary = json.loads((sweep_folder / "summary.json").read_text())
    metrics = runs.open_run(sweep_folder).metrics()
    assert config["agent"] == "ppo"
    assert config["env"] == "CartPole-v1"
    assert config["hyperparameters"]["num_envs"] == 4
    assert config["versions"]["jax"] == jax.__version__
    assert "sweep ppo CartPole-v1" in config["command"]
    members, settings = summary["members"], summary["settings"]
    assert len(settings) == 8
    assert [m["seed"] for m in members] == [0, 1] * 8
    assert [s["members"] for s in settings] == [[2 * i, 2 * i + 1] for i in range(8)]
    assert sorted(i for rows in summary["checkpoints"] for i in rows) == list(range(16))
    assert metrics["env_steps"].shape == (16, 4)
    assert (metrics["env_steps"] == [64, 128, 192, 256]).all()
    final = metrics["final_returns"]
    assert final.shape == (16, 3)
    np.testing.assert_allclose([m["final_return"] for m in members], final.mean(axis=1))
    assert summary["final_return_mean"] == pytest.approx(final.mean())
    low, high = summary["final_return_ci95"]
    assert low < summary["final_return_mean"] < high
    assert summary["best"]["mean"] == max(s["mean"] for s in settings)
    assert summary["env_steps"] == 16 * 256
    assert summary["env_steps_per_second"] == pytest.approx(16 * 256 / summary["run_seconds"])
    assert (sweep_folder / "curve.png").stat().st_size > 10_000
    lines = [json.loads(line) for line in (sweep_folder / "log.jsonl").read_text().splitlines()]
    assert [(x["batch"], x["iteration"]) for x in lines] == [
        (p, i) for p in (0, 1) for i in (1, 2, 3, 4)
    ]
    assert lines[-1]["env_steps"] == 8 * 256
    second = [i for i, m in enumerate(members) if m["hyperparameters"]["activation"] == "relu"]
    expected = metrics["policy_loss"][second, -1].mean()
    assert lines[-1]["policy_loss"] == pytest.approx(expected, 1e-3)


@pytest.mark.slow
def test_states_come_back_as_they_were(sweep_folder):
    """A member read from disk is the agent and the state that training it alone gives."""
    folder = runs.open_run(sweep_folder)
    (number, agent, state), *others = folder.members(1)
    assert number == 1
    assert not others
    assert folder.summary["members"][1]["seed"] == 1
    assert folder.setting(1) == {
        "learning_rate": pytest.approx(1e-4),
        "activation": "tanh",
        "env.gravity": 5.0,
    }
    assert agent.activation == "tanh"
    assert float(agent.env_params.gravity) == 5.0
    alone = jaxrl.train(agent, seed=1).state
    assert jax.tree.structure(alone) == jax.tree.structure(state)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(alone.key).tolist()
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("words", [["train", "--resume"], ["eval"]])
def test_a_folder_of_another_version_is_told(words, tmp_path, capsys):
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    assert main([*words, str(tmp_path)]) == 2
    assert "was written by another version of jaxrl" in capsys.readouterr().err


def test_eval(sweep_folder, capsys):
    assert main(["eval", str(sweep_folder), "--member", "7", "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate=0.0001, activation=relu, env.gravity=9.8" in shown
    assert main(["eval", str(sweep_folder), "--member", "16"]) == 2
    assert "member 16 is outside 0..15" in capsys.readouterr().err


def test_one_seed_has_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ppo", "CartPole-v1", "--seed", "7", *TINY]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("ppo-CartPole-v1-")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final_return_ci95"] == [None, None]
    assert [m["seed"] for m in summary["members"]] == [7]
    assert "recipe ppo/CartPole-v1" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["train", "ppo", "CartPole-v1", *TINY, "--out", str(folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["eval", str(folder), "--episodes", "2", "--stochastic"]) == 0


def test_plot_overlays_runs(sweep_folder, tmp_path, capsys):
    out = tmp_path / "both.png"
    assert main(["plot", str(sweep_folder), str(sweep_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.stat().st_size > 10_000
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "a.xyz")]) == 2
    assert list(tmp_path.iterdir()) == [out]


def test_logs_of_all_kinds_and_a_member_that_is_not_finite(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["sweep", "ppo", "CartPole-v1", "learning_rate=1e-3,1e38", *TINY, "--out", str(out)]
    assert main([*command, "--tensorboard", "--log-member", "0", "--on-nan", "stop"]) == 1
    shown = capsys.readouterr()
    assert "jaxrl: warning: member 1 (seed 0) has a loss or parameters that are" in shown.err
    assert f"go on without it: jaxrl sweep --resume {out}" in shown.err
    assert "without 1 of 2 members" in shown.out
    summary = json.loads((out / "summary.json").read_text())
    assert [m["diverged_at"] for m in summary["members"]] == [None, 0]
    assert summary["members"][1]["final_return"] is None
    assert list((out / "tensorboard").rglob("*tfevents*"))

    assert main(["sweep", "--resume", str(out)]) == 0
    assert "without 1 of 2 members" in capsys.readouterr().out
    (out / "curve.png").unlink()
    assert main(["watch", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "ended, batch 0, iteration 4, 512 steps" in shown
    assert "steps of a member" in shown
    assert (out / "curve.png").stat().st_size > 1000


def test_watch_shows_a_run_that_goes_on(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["watch", str(tmp_path)]) == 0
    assert "nothing to show yet" in capsys.readouterr().out
    lines = [
        {"batch": 0, "members": 2, "iteration": i, "env_steps": 2 * i, "episode_return": i / 2}
        for i in range(1, 6)
    ]
    text = "".join(json.dumps(line | {"seconds": 3.5}) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"batch": 0, "mem')  # the last is being written
    assert main(["watch", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "running, batch 0, iteration 5, 10 steps in 4 s, return 2.50" in shown
    assert (tmp_path / "curve.png").exists()
    assert main(["watch", str(tmp_path / "no")]) == 2
