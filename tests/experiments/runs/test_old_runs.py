"""Run folders of before config.json had a format number are read as far as their states allow."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrl
from experiments.command.cli import main
from experiments.runs.folder import RunFolder
from jaxrl import Tag, derive
from jaxrl.training import restore

OLD_RUNS = Path(__file__).parent.parent / "old_runs"
NAMES = ["ppo", "sweep", "sac", "bc"]


@pytest.fixture
def old_run(tmp_path):
    def unpack(name):
        with tarfile.open(OLD_RUNS / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


@pytest.mark.parametrize("name", NAMES)
def test_they_are_drawn_and_watched(name, old_run, capsys):
    folder = old_run(name)
    assert "format" not in RunFolder.open(folder).config
    assert main(["plot", str(folder)]) == 0
    assert (folder / "curve.png").stat().st_size > 10_000
    assert main(["watch", str(folder)]) == 0
    shown = capsys.readouterr().out
    unit = "gradient steps" if name == "bc" else "environment steps"
    assert f"{unit} in " in shown
    assert f"ended, batch {'1' if name == 'sweep' else '0'}, iteration 4" in shown


@pytest.mark.parametrize(("name", "member"), [("ppo", 1), ("sweep", 2), ("bc", 1)])
def test_their_agents_act_as_they_did(name, member, old_run):
    """With the keys of the final evaluation, a member read back reaches the same returns."""
    folder = RunFolder.open(old_run(name))
    ((number, agent, state, *_),) = folder.members(member)
    assert number == member
    evaluation = jaxrl.evaluate(agent, state, derive(state.key, Tag.TEST, 0), episodes=2)
    np.testing.assert_array_equal(evaluation.returns, folder.metrics()["final_returns"][member])


def test_they_go_on(old_run, capsys):
    path = old_run("ppo")
    before = RunFolder.open(path).metrics()
    assert main(["train", "--resume", str(path), "--steps", "768"]) == 0
    folder = RunFolder.open(path)
    assert folder.config["format"] == 1
    assert folder.summary["env_steps"] == 2 * 768
    after = folder.metrics()
    for name in ("steps", "episode_return", "value_loss"):
        assert after[name].shape == (2, 6)
        np.testing.assert_array_equal(after[name][:, :4], before[name])
    assert "final return over 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("sac", "eval --episodes 1", "saved by another version of jaxrl, whose states differ in"),
        ("sac", "train --steps 800 --resume", "checkpoints/0: saved by another version of jaxrl"),
        ("bc", "train --steps 800 --resume", "data/CartPole-v1-medium.hdf5: no such file"),
    ],
)
def test_what_cannot_be_read_any_more_is_refused_in_a_line(name, words, why, old_run, capsys):
    """Off-policy agents have other states by now; the data of `bc` are not there."""
    folder = old_run(name)
    config = (folder / "config.json").read_bytes()
    assert main([*words.split(), str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jaxrl: error: ")
    assert why in error
    assert (folder / "config.json").read_bytes() == config


def test_states_with_other_fields_are_refused(old_run):
    folder = RunFolder.open(old_run("ppo"))
    like = {"key": jax.random.split(jax.random.key(0)), "source": np.zeros(2)}
    with pytest.raises(ValueError, match=r"another version of jaxrl, whose states differ in act"):
        restore.read(folder.checkpoints / "0", like)


def test_what_is_older_still_is_refused(old_run, capsys):
    folder = old_run("ppo")
    config = json.loads((folder / "config.json").read_text())
    del config["evaluations"]
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["train", "--resume", str(folder), "--steps", "1e4"]) == 2
    assert "was written by another version of jaxrl" in capsys.readouterr().err
