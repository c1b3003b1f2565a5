"""Datasets from strangers: what a file declares, links to or says of itself is not believed."""

import h5py
import numpy as np
import psutil
import pytest

from envs_jax import datasets
from experiments.command.cli import main
from tests.envs_jax.test_datasets import CARTPOLE, PENDULUM, STEPS, arrays, file_of

ONES, KEYS = np.ones(STEPS), ("observations", "actions", "rewards", "terminals", "timeouts")


def put(key, value):
    """Another value of a key."""

    def change(file):
        del file[key]
        if value is not None:
            file[key] = value

    return change


def declared(key, *shape, **options):
    """Of another shape, of which nothing is stored."""

    def change(file):
        del file[key]
        file.create_dataset(key, shape, "f4", **options)

    return change


def link(key, to):
    def change(file):
        del file[key]
        file[key] = to

    return change


def attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


def virtual(file):
    layout = h5py.VirtualLayout((STEPS,), "f4")
    layout[:] = h5py.VirtualSource("secrets.hdf5", "rewards", (STEPS,))
    del file["rewards"]
    file.create_virtual_dataset("rewards", layout)


def group(file):
    del file["rewards"]
    file.create_group("rewards")


def at(key, index, value, dtype=None):
    values = arrays()[key].astype(dtype or np.float64)
    values[index] = value
    return put(key, values)


SECRET = [("secrets.txt", 0, STEPS * 4)]
STRANGE = [
    # Declared, not there
    (declared("observations", STEPS, 10**12), "declares", "8.0 GiB of memory that are free"),
    (declared("rewards", 10**12), "'observations' has 12 rows, 'rewards' has 1000000000000"),
    (declared("actions", STEPS, 10**13, chunks=(1, 10**6)), "declares 436.6 TiB, more than"),
    (declared("rewards", 0), "'observations' has 12 rows, 'rewards' has 0"),
    (declared("rewards"), "'rewards' has no rows"),
    # Elsewhere
    (declared("rewards", STEPS, external=SECRET), "'rewards' lies in other files, which are not"),
    (virtual, "'rewards' lies in other files, which are not read"),
    (link("rewards", h5py.SoftLink("/nothing")), "'rewards' is a link"),
    (link("rewards", h5py.SoftLink("/timeouts")), "'rewards' is a link; only what the file itself"),
    (link("rewards", h5py.ExternalLink("secrets.hdf5", "rewards")), "'rewards'"),
    (link("rewards", h5py.ExternalLink("nothing.hdf5", "rewards")), "'rewards'"),
    (link("timeouts", h5py.ExternalLink("secrets.hdf5", "rewards")), "'timeouts' is a link"),
    # Something else
    (group, "'rewards' is no array"),
    (put("rewards", ["a"] * STEPS), "'rewards' holds object, not numbers"),
    (put("rewards", np.zeros(STEPS, "c8")), "'rewards' holds complex64, not numbers"),
    (put("rewards", np.zeros(STEPS, [("a", "f4")])), "'rewards' holds [('a', '<f4')], not numbers"),
    (put("rewards", h5py.Empty("f4")), "'rewards' has no rows"),
    (put("rewards", np.zeros((STEPS, 2))), "'rewards' are of shape (2,), a number for each step"),
    (put("terminals", np.zeros((STEPS, 3))), "'terminals' are of shape (3,), a number for each"),
    (put("timeouts", np.zeros((STEPS, 2))), "'timeouts' are of shape (2,), a number for each"),
    (put("observations", np.zeros((STEPS, 3, 1))), "'observations' are of shape (3, 1)"),
    (put("observations", np.zeros(STEPS)), "'observations' are of shape ()"),
    (put("actions", np.zeros(STEPS)), "'actions' are of shape ()"),
    # Numbers that are none, or do not fit
    (at("terminals", 3, np.nan), "'terminals' at index 3 is nan, neither 0 nor 1"),
    (at("terminals", 5, 2, int), "'terminals' at index 5 is 2, neither 0 nor 1"),
    (at("timeouts", 2, -1, int), "'timeouts' at index 2 is -1, neither 0 nor 1"),
    (at("timeouts", 2, np.inf), "'timeouts' at index 2 is inf, neither 0 nor 1"),
    (at("rewards", 2, 1e300), "'rewards' at index 2 is not finite"),
    (at("observations", (1, 2), -1e39), "'observations' at index 1 is not finite"),
    (at("observations", (7, 0), 2**40, np.int64), "'observations' at index 7 does not fit into 32"),
    (
        put("next_observations", np.full((STEPS, 3), 2**31, "u4")),
        "'next_observations' at index 0 d",
    ),
    (put("log_probs", np.full(STEPS, np.nan)), "'log_probs' at index 0 is not finite"),
    # What it says of itself
    (attribute("random_return", "low"), "attribute 'random_return' is 'low', not a number"),
    (attribute("expert_return", [1.0, 2.0]), "attribute 'expert_return' is [1.0, 2.0], not a num"),
    (attribute("expert_return", np.inf), "attribute 'expert_return' is inf, not a number"),
    (attribute("expert_return", 1e300), "attribute 'expert_return' is 1e+300, not a number"),
    (attribute("expert_return", True), "attribute 'expert_return' is True, not a number"),
]


@pytest.mark.parametrize(("change", "said"), [(change, said) for change, *said in STRANGE])
def test_what_is_strange_is_told_in_a_line(change, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.sweep", None)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("", (), {"available": 2**33})
    )  # an array of 4 TB must not be tried where there is more
    (tmp_path / "secrets.txt").write_bytes(bytes(STEPS * 4))
    with h5py.File(tmp_path / "secrets.hdf5", "w") as file:
        file["rewards"] = ONES
    path = file_of(tmp_path / "strange.hdf5", log_probs=np.zeros(STEPS))
    with h5py.File(path, "r+") as file:
        change(file)
    before = path.read_bytes()
    for words in (
        ["data"],
        ["train", "bc", "Pendulum-v1", "--out", str(tmp_path / "run"), "--data"],
    ):
        env = ["--env", "Pendulum-v1"] if words == ["data"] else []
        assert main([*words, str(path), *env]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"jaxrl: error: {path}: ")
        assert error.count("\n") == 1
        for part in said:
            assert part in error
    assert path.read_bytes() == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"words", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" * 99]
)
def test_what_is_no_hdf5_file_is_told_in_a_line(content, tmp_path, capsys):
    path = tmp_path / "none.hdf5"
    path.write_bytes(content)
    assert main(["data", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxrl: error: {path}: not a readable HDF5 file")
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", [2**32 + 1, 2**31, -(2**33)])
def test_discrete_actions_do_not_wrap(value, tmp_path):
    """As 32 bits of them would be an action: 2^32 + 1 is 1."""
    made = {"observations": np.zeros((STEPS, 4)), "next_observations": None}
    path = file_of(tmp_path / "a.hdf5", actions=np.zeros(STEPS, np.int64), **made)
    assert len(datasets.read(path, *CARTPOLE)) > 0
    with h5py.File(path, "r+") as file:
        file["actions"][4] = value
    with pytest.raises(ValueError, match="'actions' at index 4 does not fit into 32 bits"):
        datasets.read(path, *CARTPOLE)


def test_attributes_that_are_no_text_are_read_somehow(tmp_path):
    path = file_of(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file.attrs["policy"] = np.bytes_(b"caf\xe9")
        file.attrs["random_return"] = np.nan  # not known
    info = datasets.read(path, *PENDULUM).info
    assert info == {"policy": "caf\ufffd", "random_return": None}
