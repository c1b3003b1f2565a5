"""Sinks: what a run writes while it runs can be read back, for a member or for the mean."""

import json
import struct

import numpy as np
import pytest

import jaxrl
from jaxrl.training.sinks import JsonLines, TensorBoard, Wandb
from tests.training.test_sweep import toy

SPACE = {"rate": [0.1, 0.5], "num_steps": [4, 2]}


def sweep(sink):
    return jaxrl.sweep(toy(iterations=5), SPACE, seeds=2, evaluations=1, callbacks=[sink])


def test_json_lines(tmp_path):
    population = sweep(JsonLines(tmp_path / "log.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == [0] * 5 + [1] * 10
    assert [line["iteration"] for line in lines] == [*range(1, 6), *range(1, 11)]
    assert {line["members"] for line in lines} == {4}
    assert lines[-1]["env_steps"] == 4 * 40
    first = [0, 1, 4, 5]  # the members with num_steps=4
    weights = population.history.metrics["weight"][first]
    np.testing.assert_allclose([x["weight"] for x in lines[:5]], weights[:, :5].mean(axis=0), 1e-6)
    assert lines[0]["episode_return"] is None or lines[0]["episode_return"] == 3
    returns = population.history.evaluations["returns"][first]
    assert lines[4]["evaluation_return"] == pytest.approx(returns.mean())


def events(folder):
    """(step, name, value) of all event files below a folder: a record is length, data, two CRCs."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.rglob("*tfevents*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


@pytest.mark.parametrize("member", [None, 5])
def test_tensorboard(member, tmp_path):
    population = sweep(TensorBoard(tmp_path, member))
    found = [(step, x) for step, name, x in events(tmp_path / "0") if name == "weight"]
    rows = [0, 1, 4, 5] if member is None else [member]
    expected = population.history.metrics["weight"][rows, :5].mean(axis=0)
    steps, values = np.asarray(sorted(found)).T
    np.testing.assert_array_equal(steps, 8 * np.arange(1, 6))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert (tmp_path / "1").exists() == (member is None)


def records(path):
    """The messages of a .wandb file: LevelDB's log of blocks behind a header of seven bytes."""
    content, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # what is too short for a header is padding
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", content, at)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    from wandb.proto.wandb_internal_pb2 import Record

    population = sweep(Wandb("test", {"rate": 1}, member=0, mode="offline", dir=str(tmp_path)))
    (path,) = tmp_path.rglob("*.wandb")
    items = [x for data in records(path) for x in Record.FromString(data).history.item]
    weights = [float(x.value_json) for x in items if "weight" in (x.key, *x.nested_key)]
    np.testing.assert_allclose(weights, population.history.metrics["weight"][0, :5], rtol=1e-5)


def test_a_sink_that_cannot_write_ends_and_the_run_goes_on(tmp_path):
    reports = []
    sink = JsonLines(tmp_path / "no" / "log.jsonl")
    with pytest.warns(UserWarning, match="JsonLines ends here: .*No such file") as warned:
        jaxrl.train(toy(iterations=5), callbacks=[sink, reports.append])
    assert len(warned) == 1
    assert len(reports) == 5


def test_one_that_is_not_installed_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX is not installed: pip install -e '\.\["):
        TensorBoard(tmp_path)
