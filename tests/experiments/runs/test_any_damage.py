"""Whatever has happened to the files of a run or a dataset: an answer or a line, no traceback."""

import contextlib
import io
import json
import shutil
import tarfile

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from experiments.command.cli import main
from tests.envs_jax.test_datasets import arrays, file_of
from tests.experiments.runs.test_damaged import OLD_RUN

# The same examples every time: a new fault is found by whoever raises their number.
SETTINGS = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = ("config.json", "summary.json", "log.jsonl", "checkpoints/batches.json")
COMMANDS = (
    ["eval", "--episodes", "1"],
    ["plot"],
    ["watch"],
    ["train", "--resume"],
    ["train", "--steps", "768", "--resume"],
)
WORDS = st.sampled_from(["", "x", "inf", "-inf", "nan", "ppo", "Pendulum-v1", "caf\u00e9", "../x"])
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**31, 2**63, 10**400, -(2**40), 1e308, -0.5, 0.5])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "seed"]), inner)
    ),
    max_leaves=4,
)


class Reached(Exception):
    """The engine: what it was asked to do was found to be all right."""


def reach(*_, **__):
    raise Reached


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(folder, filter="data")
    return folder / "ppo"


@pytest.fixture
def stopped(monkeypatch):
    for name in ("sweep", "train", "evaluate"):
        monkeypatch.setattr(f"jaxrl.{name}", reach)


def answered(*words):
    """Run a command; it ends well, or with one line that says why not."""
    error, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
        try:
            status = main(list(words))
        except Reached:
            return
    lines = [x for x in error.getvalue().splitlines() if x.startswith("jaxrl: error: ")]
    assert (status, len(lines)) in ((0, 0), (2, 1)), error.getvalue()


def places(content, path=()):
    """The way to each entry of a JSON value."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inner:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


@SETTINGS
@given(data=st.data())
def test_an_entry_of_a_runs_files_is_another(data, whole, stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    name = data.draw(st.sampled_from(TEXT))
    path = folder / name
    first, end, rest = path.read_text().partition("\n") if name == "log.jsonl" else ("", "", "")
    content = json.loads(first or path.read_text())
    way = data.draw(st.sampled_from(list(places(content))))
    if way:
        outer = content
        for key in way[:-1]:
            outer = outer[key]
        if data.draw(st.booleans()):
            outer[way[-1]] = data.draw(VALUES)
        else:
            del outer[way[-1]]
    else:
        content = data.draw(VALUES)
    path.write_text(json.dumps(content) + end + rest)
    answered(*data.draw(st.sampled_from(COMMANDS)), str(folder))


def mutated(content, where, how, what):
    """Bytes that are cut, flipped, repeated or replaced at a place, given as a share of them."""
    at = int(where * len(content))
    if how == "cut":
        return content[:at]
    if how == "flip":
        return content[:at] + bytes([content[at] ^ 1 << (len(what) % 8)]) + content[at + 1 :]
    if how == "repeat":
        return content[:at] + content[at // 2 :]
    return content[:at] + what + content[at + len(what) :]


BYTES = {
    "where": st.floats(0, 0.999),
    "how": st.sampled_from(["cut", "flip", "repeat", "replace"]),
    "what": st.binary(max_size=12),
}


@SETTINGS
@given(number=st.integers(0, 10**6), command=st.sampled_from(COMMANDS), **BYTES)
def test_bytes_of_a_runs_files_are_others(
    number, command, where, how, what, whole, stopped, tmp_path
):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[number % len(paths)]
    content = path.read_bytes()
    path.write_bytes(mutated(content, where, how, what) if content else what)
    answered(*command, str(folder))


@SETTINGS
@given(**BYTES)
@example(where=0.0, how="cut", what=b"")
def test_bytes_of_a_dataset_are_others(where, how, what, stopped, tmp_path):
    path = file_of(tmp_path / "a.hdf5")
    path.write_bytes(mutated(path.read_bytes(), where, how, what))
    answered("data", str(path), "--env", "Pendulum-v1")


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 11, 12, 13]), max_size=3)
KINDS = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u8", "?", "c8", "S3", "M8[s]"])


@SETTINGS
@given(key=st.sampled_from(list(arrays())), shape=SHAPES, kind=KINDS, fill=NUMBERS)
def test_an_array_of_a_dataset_is_another(key, shape, kind, fill, stopped, tmp_path):
    path = file_of(tmp_path / "a.hdf5")
    values = np.zeros(shape, kind.replace("M8[s]", "V8"))
    with contextlib.suppress(OverflowError, TypeError, ValueError), np.errstate(all="ignore"):
        values[...] = fill
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = values
    answered("data", str(path), "--env", "Pendulum-v1")
    answered("train", "bc", "Pendulum-v1", "--data", str(path), "--out", str(tmp_path / "run"))


@SETTINGS
@given(name=st.sampled_from(["env", "random_return", "expert_return", "a"]), value=VALUES)
def test_what_a_dataset_says_of_itself_is_something_else(name, value, stopped, tmp_path):
    path = file_of(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file, contextlib.suppress(TypeError, OverflowError, ValueError):
        file.attrs[name] = value  # where HDF5 has such a thing
    answered("data", str(path))
    answered("train", "bc", "Pendulum-v1", "--data", str(path), "--out", str(tmp_path / "run"))
