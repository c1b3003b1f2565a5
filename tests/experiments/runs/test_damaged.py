"""A run's own files are not believed: what is damaged in them is told in one line."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from experiments.command.cli import main
from experiments.runs import schema
from jaxrl import Checkpoints

OLD_RUN = Path(__file__).parent.parent / "old_runs" / "ppo.tar.gz"
COMMANDS = {
    "eval": ["eval", "--episodes", "1"],
    "plot": ["plot"],
    "watch": ["watch"],
    "resume": ["train", "--steps", "768", "--resume"],
}
WHOLE = {"\x00\xff": "Invalid JSON", "": "Invalid JSON", "[" * 100_000: "recursion limit"}
WHOLE |= {"[1]": "[1] should be an object", "null": "None should be an object"}
GONE = "the file is damaged, or was written by another version of jaxrl"

# File, key, its value (None: the key is gone), what is said, and the commands that read it.
DAMAGES = [
    ("config.json", "agent", 3, "agent=3 should be a valid string", "eval plot watch resume"),
    ("config.json", "env", None, f"env is missing: {GONE}", "eval plot watch resume"),
    ("config.json", "env_options", [], "env_options=[] should be an object", "watch resume"),
    ("config.json", "env_options", {"a": 1}, "unknown option 'a'", "eval resume"),
    ("config.json", "env_params.gravity", "low", "gravity='low' should be a valid b", "plot"),
    ("config.json", "hyperparameters", "x", "hyperparameters='x' should be an object", "watch"),
    ("config.json", "hyperparameters.total_steps", None, "total_steps is missing", "resume"),
    ("config.json", "hyperparameters.gamma", {}, "hyperparameters.gamma={} should", "plot resume"),
    ("config.json", "hyperparameters.num_envs", "two", "num_envs='two' must be of", "resume"),
    ("config.json", "hyperparameters.hidden_sizes", 4, "hidden_sizes=4 must be of", "resume"),
    ("config.json", "settings", [], "settings=[] should", "plot resume"),
    ("config.json", "settings.0", None, "settings=[] should", "plot resume"),
    ("config.json", "seeds.0", 1.5, "seeds.0=1.5 should be a valid integer", "eval watch resume"),
    ("config.json", "seeds.1", -1, "seeds.1=-1 should be greater than or equal to 0", "resume"),
    ("config.json", "data", 3, "data=3 should be a valid string or a valid array", "plot resume"),
    ("config.json", "format", "1", "format='1' should be a valid integer", "eval watch resume"),
    ("summary.json", "members", None, f"members is missing: {GONE}", "eval plot resume"),
    ("summary.json", "members.0", [], "members.0=[] should be an object", "eval plot resume"),
    ("summary.json", "members.1.seed", "x", "members.1.seed='x' should be a valid int", "eval"),
    ("summary.json", "members.0.hyperparameters.gamma", [], "gamma=[] must be of type", "eval"),
    ("summary.json", "settings.0.members.0", 7, "settings should name each of 2", "eval plot"),
    ("summary.json", "checkpoints", [[0]], "checkpoints should name each of 2 members", "eval"),
    ("summary.json", "interrupted", "no", "interrupted='no' should be a valid bool", "resume"),
    ("log.jsonl", "members", 0, "line 1: members=0 should be greater than or equal", "watch"),
    ("log.jsonl", "env_steps", "many", "line 1: env_steps='many' should be", "watch"),
    ("log.jsonl", "episode_return", [], "line 1: episode_return=[] should be", "watch"),
]
DAMAGES += [("config.json", "", text, said, "eval watch resume") for text, said in WHOLE.items()]
DAMAGES += [("summary.json", "", text, said, "eval plot") for text, said in WHOLE.items()]
DAMAGES += [("log.jsonl", "", text, said, "watch") for text, said in WHOLE.items() if text]


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "ppo"


def put(path, key, value):
    """Write a file anew, or an entry of its first line's object."""
    if not key:
        path.write_bytes(value.encode("latin1"))
        return
    text = path.read_text()
    if path.suffix == ".jsonl":
        text, _, rest = text.partition("\n")
    content = entry = json.loads(text)
    *outer, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in outer:
        entry = entry[part]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    path.write_text(json.dumps(content) + ("\n" + rest if path.suffix == ".jsonl" else ""))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "key", "value", "said", "commands"), DAMAGES)
def test_what_is_damaged_is_told_in_a_line(name, key, value, said, commands, folder, capsys):
    put(folder / name, key, value)
    before = contents(folder)
    for command in commands.split():
        assert main([*COMMANDS[command], str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"jaxrl: error: {folder}")
        assert said in error
        assert len(error) < 500
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:500], "is damaged, it should be an .npz of arrays"),
        (lambda content: b"PK\x03\x04", "is damaged, it should be an .npz of arrays"),
        (lambda content: b"", "is damaged, it should be an .npz of arrays"),
        ({"env_steps": None}, f"env_steps is missing: {GONE}"),
        ({"episodes": np.ones(3)}, "episodes is float64 of shape (3,), it should be numbers of 2"),
        ({"episodes": np.full((2, 4), "x")}, "episodes is <U1 of shape (2, 4), it should be numb"),
        ({"episodes": np.ones((2, 5))}, "it should be numbers of 2 members and 4 iterations"),
    ],
)
def test_damaged_arrays_are_told_in_a_line(damage, said, folder, capsys):
    path = folder / "metrics.npz"
    if callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        arrays = dict(np.load(path)) | damage
        np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    before = contents(folder)
    assert main(["plot", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert contents(folder) == before


def test_lines_that_a_kill_has_cut_are_left_out(folder):
    path = folder / "log.jsonl"
    first, second, *_ = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}{second}\n{second}\n{second[:30]}")
    assert [line["iteration"] for line in schema.read_lines(path)] == [1, 2]
    path.write_text(first[:40])
    assert schema.read_lines(path) == []


@pytest.mark.parametrize("text", ["", "null", "[1]", "[" * 100_000, '{"0": 0}', '{"0": "x"}'])
def test_damaged_batch_sizes_are_read_from_checkpoints(text, folder):
    """So that another memory limit does not sort members into other batches."""
    checkpoints = Checkpoints(folder / "checkpoints")
    (folder / "checkpoints" / "batches.json").write_text(text)
    with pytest.warns(UserWarning, match=r"batches.json is damaged, it should say how many memb"):
        assert checkpoints.batch_size(0, lambda: 1) == 2
    assert checkpoints.batch_size(0, lambda: 1) == 2
