"""`jaxrl data`: what it shows is what the file holds."""

import numpy as np
import pytest

from envs_jax import datasets
from envs_jax.recording import Recording
from experiments.command.cli import main


def recording(env, actions, lengths=(3, 1), info=None):
    """Episodes of rewards 1, 2, ...; all of them terminate but the last, which stopped."""
    size = sum(lengths)
    last = np.isin(np.arange(size), np.cumsum(lengths) - 1)
    stopped = last & (np.arange(size) == size - 1)
    width = {"Pendulum-v1": 3, "CartPole-v1": 4}[env]
    obs = np.tile(np.arange(size, dtype=np.float32)[:, None], width)
    obs[:, -1] = 7
    next_obs = np.where(obs == 7, 7, obs + 1)
    reward = np.arange(1, size + 1, dtype=np.float32)
    info = {"env": env} | (info or {})
    return Recording(obs, actions, reward, last & ~stopped, stopped, next_obs, info, stopped)


def rows_of(text):
    """Each printed row by its first word or words, cells as they are."""
    cells = [line.strip().split("  ") for line in text.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def pendulum(tmp_path):
    actions = np.array([[-2.0], [0.0], [1.0], [2.0]], np.float32)
    info = {"random_return": 0.0, "expert_return": 12.0, "kind": "medium"}
    path = tmp_path / "pendulum.hdf5"
    datasets.write(path, recording("Pendulum-v1", actions, info=info))
    return path


def test_one_file_is_shown_in_full(pendulum, capsys):
    assert main(["data", str(pendulum), "--gamma", "0.5"]) == 0
    rows = rows_of(capsys.readouterr().out)
    expected = {"steps": "4", "episodes": "2", "terminated": "1", "cut by time": "0"}
    expected |= {"fragments": "1", "mean return": "6.00", "mean length": "3.00"}
    expected |= {"value at 0.5": "2.75", "score": "50.00", "greatest reward": "4.00"}
    for name, value in expected.items():
        assert rows[name] == [value], name
    assert rows["0"] == ["0.00", "1.50", "1.12", "3.00"]  # the last table's: observations
    assert rows["2"] == ["7.00", "7.00", "0.00", "7.00"]
    assert rows["kind"] == ["medium"]


def test_actions_are_shown_by_how_much_of_their_box_they_cover(pendulum, tmp_path, capsys):
    assert main(["data", str(pendulum)]) == 0
    text = capsys.readouterr().out
    found = [x.split() for x in text.split("at the high bound")[1].splitlines()]
    assert ["0", "-1.00", "0.12", "1.00", "0.250", "0.250"] in found
    path = tmp_path / "cartpole.hdf5"
    datasets.write(path, recording("CartPole-v1", np.array([0, 1, 1, 1], np.int32)))
    assert main(["data", str(path)]) == 0
    text = capsys.readouterr().out
    found = [x.split() for x in text.split("share")[1].splitlines()]
    assert ["0", "0.250"] in found
    assert ["1", "0.750"] in found


def test_several_files_are_a_row_each(pendulum, capsys):
    assert main(["data", str(pendulum), str(pendulum), "--reference", "0,6"]) == 0
    lines = [x.split() for x in capsys.readouterr().out.splitlines()]
    assert sum(words[-1:] == ["100.00"] for words in lines) == 2


def test_what_cannot_be_shown_is_told_in_a_line(tmp_path, pendulum, capsys):
    nameless = tmp_path / "nameless.hdf5"
    datasets.write(nameless, recording("CartPole-v1", np.zeros(4, np.int32), info={"env": ""}))
    (tmp_path / "text.hdf5").write_text("no data")
    for words, why in [
        ([str(tmp_path / "nothing.hdf5")], "no such file"),
        ([str(tmp_path / "text.hdf5")], "not a readable HDF5 file"),
        ([str(nameless)], "unknown environment ''"),
        ([str(pendulum), "--env", "CartPole-v1"], "'observations' are of shape (3,)"),
        (["minari:nothing"], "does not say which environment it is of: give --env ENV"),
    ]:
        assert main(["data", *words]) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["data", str(pendulum), "--gamma", "2"])
    assert "2 is not a number from 0 to 1" in capsys.readouterr().err
