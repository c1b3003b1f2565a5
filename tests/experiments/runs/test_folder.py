"""Run folders: what a sweep leaves, and what reads it."""

import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

import jaxrl
from experiments.command import options, starts
from experiments.command.assemble import Request, assemble, request_of
from experiments.command.cli import main
from experiments.runs import jsonfile
from experiments.runs.folder import RunFolder
from tests.test_files import full

TINY = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "256", "--episodes", "3"]


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """A sweep of a static and a traced hyper-parameter and an environment's: 8 settings."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    grid = ["learning_rate=log:1e-4:1e-2:2", "activation=tanh,relu", "env.gravity=5,9.8"]
    command = ["sweep", "ppo", "CartPole-v1", *grid, *TINY, "--seeds", "2", "--out", str(folder)]
    assert main(command) == 0
    return folder


def test_a_recipe_is_the_best_setting_and_trains_it_again(sweep_folder, tmp_path, capsys):
    assert main(["recipe", str(sweep_folder)]) == 0
    file = tmp_path / "mine.toml"
    file.write_text(capsys.readouterr().out)
    best = json.loads((sweep_folder / "summary.json").read_text())["best"]["hyperparameters"]
    experiment = assemble(Request("ppo", "CartPole-v1", recipe=file))
    agent = experiment.agent
    assert agent.total_steps == 256
    assert (agent.num_envs, agent.num_steps, agent.num_minibatches) == (4, 16, 2)
    assert agent.learning_rate == pytest.approx(best["learning_rate"])
    assert agent.activation == best["activation"]
    assert float(agent.env_params.gravity) == pytest.approx(best["env.gravity"])
    assert experiment.recipe.source.startswith("the best of 8 settings of ")
    assert "gae_lambda" not in experiment.recipe.hyperparameters  # as it is by default
    written = experiment.recipe.hyperparameters
    assert written.get("env.gravity", 9.8) == best["env.gravity"]  # not the nearest float32
    again = assemble(Request("ppo", "CartPole-v1", ["gamma=0.5"], recipe=file, steps=512)).agent
    assert (again.gamma, again.total_steps, again.num_envs) == (0.5, 512, 4)


def train_from(*words):
    args = options.parse(["train", "--from", *map(str, words)])
    starts.settle(args)
    return assemble(request_of(args))


def test_a_setting_of_a_run_is_trained_again_in_one_line(sweep_folder):
    summary = json.loads((sweep_folder / "summary.json").read_text())
    experiment = train_from(sweep_folder, "--best", "gamma=0.5", "--seeds", "3", "--steps", "512")
    best = summary["best"]["hyperparameters"]
    agent = experiment.agent
    assert (experiment.agent_name, experiment.env_id) == ("ppo", "CartPole-v1")
    assert (experiment.seeds, agent.gamma, agent.total_steps) == ([0, 1, 2], 0.5, 512)
    assert agent.learning_rate == pytest.approx(best["learning_rate"])
    assert agent.activation == best["activation"]
    assert float(agent.env_params.gravity) == pytest.approx(best["env.gravity"])
    (other,) = [s for s in summary["settings"] if 5 in s["members"]]
    agent = train_from(sweep_folder, "--member", 5).agent
    assert agent.learning_rate == pytest.approx(other["hyperparameters"]["learning_rate"])
    assert agent.activation == other["hyperparameters"]["activation"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--from", "RUN"], "has 8 settings: give --best or --member I"),
        (["--from", "RUN", "--member", "99"], "member 99 is outside 0..15"),
        (["--from", "nowhere", "--best"], "nowhere is not a run"),
        (["ppo", "--from", "RUN", "--best"], "ppo: --from takes these from the run in"),
        (["--from", "RUN", "--recipe", "x.toml"], "--recipe: --from takes these"),
        (["ppo", "CartPole-v1", "--best"], "give --from DIR as well"),
        (["--resume", "RUN", "--from", "RUN"], "--from: --resume goes on with the settings"),
    ],
)
def test_what_cannot_be_trained_from_a_run_is_told_in_a_line(sweep_folder, capsys, words, line):
    assert main(["train", *(str(sweep_folder) if x == "RUN" else x for x in words)]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


def test_best_is_the_best_seed_of_the_best_setting(sweep_folder, monkeypatch):
    """As in Python; not one lucky seed of a setting that is bad with others."""
    folder = RunFolder.open(sweep_folder)
    summary = folder.summary
    settings = summary["settings"]
    lucky, (good, better) = settings[1]["members"][0], settings[2]["members"]
    for i, row in enumerate(summary["members"]):
        row["final_return"] = {lucky: 90.0, good: 60.0, better: 70.0}.get(i, 0.0)
    summary["best"] = settings[2]
    monkeypatch.setattr(RunFolder, "summary", summary)
    assert folder.chosen(None, best=True) == better


def test_best_of_a_run_that_goes_on_is_of_the_best_setting_so_far(sweep_folder, monkeypatch):
    monkeypatch.setattr(RunFolder, "has_ended", False)
    folder = RunFolder.open(sweep_folder)
    lucky, (good, better) = (s["members"] for s in folder.listing["settings"][1:3])
    returns = np.zeros(16)
    returns[[lucky[0], good, better]] = 90.0, 60.0, 70.0
    monkeypatch.setattr("experiments.runs.folder.last_returns", lambda metrics: returns)
    assert folder.chosen(None, best=True) == better


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("recipe", "is no TOML file"),
        ("a = 1", "is no recipe: it needs a table"),
        ("recipe = 1", "is no recipe: it needs a table"),
        ('[recipe]\nagent="sac"\nenv="X"\nsteps=1\nsource=""', "is for sac on X"),
    ],
)
def test_recipes_that_are_none(text, line, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=line):
        assemble(Request("ppo", "CartPole-v1", recipe=file))


def test_a_sweep_leaves_a_figure_of_what_it_found(sweep_folder, capsys):
    (sweep_folder / "sweep.png").unlink()
    assert main(["plot", str(sweep_folder)]) == 0
    assert capsys.readouterr().out.split() == [
        str(sweep_folder / name) for name in ("curve.png", "sweep.png")
    ]
    assert (sweep_folder / "sweep.png").stat().st_size > 10_000


def test_run_folder(sweep_folder):
    config = json.loads((sweep_folder / "config.json").read_text())
    summary = json.loads((sweep_folder / "summary.json").read_text())
    metrics = RunFolder.open(sweep_folder).metrics()
    assert config["format"] == 1
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
    means = [s["measures"]["return"]["mean"] for s in settings]
    assert means == pytest.approx(final.reshape(8, 6).mean(axis=1))
    assert summary["best"]["measures"]["return"]["mean"] == max(means)
    assert summary["unit"] == config["unit"] == "environment steps"
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
    folder = RunFolder.open(sweep_folder)
    (number, agent, state, setting, seed, iteration), *others = folder.members(1)
    assert (number, seed, iteration) == (1, 1, 4)
    assert not others
    assert setting == {
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


def test_a_run_that_was_killed_is_read_from_its_checkpoints(sweep_folder, tmp_path, capsys):
    killed = shutil.copytree(sweep_folder, tmp_path / "killed")
    whole = RunFolder.open(sweep_folder)
    for name in ("summary.json", "metrics.npz", "curve.png"):
        (killed / name).unlink()
    folder = RunFolder.open(killed)
    assert not folder.has_ended
    assert folder.listing["checkpoints"] == whole.listing["checkpoints"]
    pairs = [setting["members"] for setting in folder.listing["settings"]]
    assert pairs == [[2 * i, 2 * i + 1] for i in range(8)]
    for name, values in folder.metrics().items():
        np.testing.assert_array_equal(values, whole.metrics()[name])
    shown = []
    for path in (killed, sweep_folder):
        assert main(["eval", str(path), "--member", "9", "--episodes", "2"]) == 0
        shown.append(capsys.readouterr().out)
    assert f"{killed} has not ended: these are its checkpoints" in shown[0]
    assert shown[0].splitlines()[1:] == shown[1].splitlines()
    assert main(["plot", str(killed)]) == 0
    assert (killed / "curve.png").stat().st_size > 10_000
    shutil.rmtree(killed / "checkpoints" / "1")  # the second program had not begun
    assert len(list(RunFolder.open(killed).members())) == 8
    shutil.rmtree(killed / "checkpoints")
    assert main(["eval", str(killed)]) == 2
    assert "has not ended, and nothing of it was saved yet" in capsys.readouterr().err


def test_another_checkpoint_is_evaluated(sweep_folder, capsys):
    words = ["eval", str(sweep_folder), "--member", "0", "--episodes", "2", "--checkpoint"]
    assert main([*words, "4"]) == 0
    assert main([*words, "best"]) == 0
    assert main([*words, "3"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds no checkpoint 3: there are newest, best and " in error


def experiment():
    return assemble(Request("ppo", "CartPole-v1", steps=1024))


def test_of_many_that_want_a_folder_one_gets_it(tmp_path):
    wanted = experiment()
    owners, refused = [], []
    start, end = threading.Barrier(16), threading.Event()

    def take(number):
        start.wait()
        try:
            with RunFolder.create(tmp_path / "run", wanted, str(number)):
                owners.append(number)
                end.wait(20)
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    while len(owners) + len(refused) < 16:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert len(owners) == 1
    assert set(refused) == {f"{tmp_path / 'run'} already holds a run: choose another --out"}
    assert RunFolder.open(tmp_path / "run").config["command"] == str(owners[0])


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("failure", [RuntimeError("true cause"), KeyboardInterrupt()])
def test_what_was_trained_stays_whatever_fails(failure, begun, tmp_path):
    path = tmp_path / "run"

    def fail():
        with RunFolder.create(path, experiment(), "") as folder:
            (path / "checkpoints" / "0" / "history").mkdir(parents=True)
            (path / "wandb").mkdir()
            if begun:
                folder.log.touch()  # on a full disk the first chunk gets no further
            raise failure

    with pytest.raises(type(failure)) as raised:
        fail()
    assert raised.value is failure
    assert path.exists() == begun
    if begun:
        names = {file.name for file in path.iterdir()}
        assert names == {"checkpoints", "wandb", "log.jsonl", "config.json"}


def test_an_error_after_a_chunk_leaves_what_was_trained(tmp_path, monkeypatch):
    """With event files open, and before anything is saved: the true cause is shown."""
    path, failure = tmp_path / "run", RuntimeError("true cause")
    calls = []

    def fail(self, *_):
        calls.append(self)
        if len(calls) == 2:
            raise failure

    monkeypatch.setattr("experiments.command.train.WriteDown.__call__", fail)
    with pytest.raises(RuntimeError) as raised:
        main(["train", "ppo", "CartPole-v1", *TINY, "--tensorboard", "--out", str(path)])
    assert raised.value is failure
    assert (path / "log.jsonl").read_text().count("\n") == 1
    assert {"tensorboard", "config.json"} <= {file.name for file in path.iterdir()}


def test_a_full_disk_leaves_no_half_of_a_configuration(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        jsonfile.write(tmp_path / "config.json", {"a": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert jsonfile.read(tmp_path / "config.json") == {"a": 1}


def test_a_name_that_is_not_utf8_is_written_down_somehow():
    assert jsonfile.plain({"command": "caf\udce9"}) == {"command": "caf\\udce9"}


def test_plot_overlays_runs(sweep_folder, tmp_path, capsys):
    out = tmp_path / "both.png"
    assert main(["plot", str(sweep_folder), str(sweep_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.stat().st_size > 10_000
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "a.xyz")]) == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_a_newer_format_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 2}')
    for words in (["train", "--resume"], ["eval"], ["plot"], ["watch"]):
        assert main([*words, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "written by a newer version of jaxrl (format 2, this version reads up to 1)" in error
