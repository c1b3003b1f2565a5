"""Sinks: what a run writes while it runs can be read back, for a member or for the mean."""

import json
import struct
import sys

import numpy as np
import pytest

import jaxrl
from experiments.runs.schema import read_lines
from jaxrl.training.sinks import JsonLines, TensorBoard, Wandb
from tests.training.test_sweep import toy
from tests.training.tuned import tuned

SPACE = {"rate": [0.1, 0.5], "num_steps": [4, 2]}
MEMBERS = [(rate, n, seed) for rate in (0.1, 0.5) for n in (4, 2) for seed in (0, 1)]


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


class FakeWandb:
    """Keeps what it is given, as wandb's module does."""

    Settings = dict

    def __init__(self):
        self.begun = []

    def init(self, **arguments):
        run = FakeRun(arguments)
        self.begun.append(run)
        return run


class FakeRun:
    def __init__(self, arguments):
        self.arguments, self.logged, self.finished = arguments, [], 0

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "env_steps")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake_wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_has_a_run_for_each_member(fake_wandb):
    rows = [{"rate": rate, "num_steps": n, "seed": s} for rate, n, s in MEMBERS]
    sink = Wandb("test", {"env": "Toy"}, table=rows, id="mine", group="sweep")
    assert len(fake_wandb.begun) == 8  # before anything is trained
    population = sweep(sink)
    assert population.table == rows
    for i, run in enumerate(fake_wandb.begun):
        arguments = run.arguments
        assert arguments["config"] == {"env": "Toy", **rows[i], "member": i}
        assert (arguments["id"], arguments["group"]) == (f"mine-{i}", "sweep")
        assert (arguments["resume"], arguments["reinit"]) == ("allow", "create_new")
        assert arguments["settings"]["silent"] == (i > 0)
        weights = population.history.metrics["weight"][i]
        weights = weights[np.isfinite(weights)]
        np.testing.assert_allclose([x["weight"] for x in run.logged], weights, rtol=1e-6)
        assert run.logged[-1]["env_steps"] == 40
        assert run.finished == 1


def test_wandb_begins_runs_as_members_come_and_goes_on_with_an_id(fake_wandb):
    ids = []
    for id in ("same", "same", None, None):
        fake_wandb.begun = []
        jaxrl.train(toy(iterations=2), seed=7, callbacks=[Wandb("test", id=id)])
        (run,) = fake_wandb.begun
        assert run.arguments["config"] == {"seed": 7, "member": 0}
        ids.append(run.arguments["id"])
    assert ids[:2] == ["same-0", "same-0"]
    assert len(set(ids[1:])) == 3


def test_wandb_of_one_member_and_of_too_many(fake_wandb):
    rows = [{"seed": seed} for seed in range(101)]
    with pytest.raises(ValueError, match=r"101 members are too many for a run each \(at most 100"):
        Wandb("test", table=rows)
    Wandb("test", table=rows, member=5)
    (run,) = fake_wandb.begun
    assert run.arguments["config"] == {"seed": 5, "member": 5}


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    rows = [{"rate": rate, "num_steps": n, "seed": s} for rate, n, s in MEMBERS[:2]]
    sink = Wandb("test", table=rows, id="mine", mode="offline", dir=str(tmp_path))
    population = jaxrl.sweep(toy(iterations=5), {"rate": [0.1]}, seeds=2, callbacks=[sink])
    wandb.teardown()  # the end of the process, which waits until all is written
    paths = sorted(tmp_path.rglob("*.wandb"))
    assert [path.stem for path in paths] == ["run-mine-0", "run-mine-1"]
    for member, path in enumerate(paths):
        items = [x for data in records(path) for x in Record.FromString(data).history.item]
        weights = [float(x.value_json) for x in items if "weight" in (x.key, *x.nested_key)]
        expected = population.history.metrics["weight"][member]
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


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


# Searches that change hyper-parameters while they run ---------------------------------------------

RATES = {"rate": jaxrl.Log(1e-4, 1.0, 9)}


def halved(*sinks):
    return jaxrl.halving(tuned(iterations=9), RATES, callbacks=sinks)


def test_the_survivors_of_halving_are_logged(tmp_path, fake_wandb):
    log = tmp_path / "log.jsonl"
    population = halved(JsonLines(log), TensorBoard(tmp_path), Wandb("test", id="mine"))
    lines = read_lines(log)
    rates = [row["rate"] for row in population.table]
    assert [rung.iteration for rung in population.rungs] == [1, 3, 9]
    for line in lines:
        rung = population.rungs[line["batch"]]
        assert line["numbers"] == rung.members
        assert line["hyperparameters"] == {"rate": [rates[i] for i in rung.members]}
    last = {name: value for _, name, value in events(tmp_path / "2")}
    assert last["members"] == 1
    (winner,) = population.rungs[-1].members
    for which in ("lowest", "median", "highest"):
        assert last[f"hyperparameters/rate/{which}"] == pytest.approx(rates[winner])
    first = {name: value for _, name, value in events(tmp_path / "0")}
    assert first["members"] == 9
    spread = [first[f"hyperparameters/rate/{which}"] for which in ("lowest", "median", "highest")]
    np.testing.assert_allclose(spread, [1e-4, 1e-2, 1.0], rtol=1e-5)
    for run in fake_wandb.begun:
        number = run.arguments["config"]["member"]
        assert {row["hyperparameters/rate"] for row in run.logged} == {rates[number]}
        steps = np.nanmax(population.history.env_steps[number])
        assert run.logged[-1]["env_steps"] == steps


def test_what_population_based_training_changes_is_logged(tmp_path, fake_wandb):
    log = tmp_path / "log.jsonl"
    sinks = [JsonLines(log), TensorBoard(tmp_path, member=0), Wandb("test", id="mine")]
    population = jaxrl.pbt(tuned(iterations=9), RATES, every=12, callbacks=sinks)
    assert any(e.values != population.exchanges[0].values for e in population.exchanges[1:])

    def values(iteration):  # while this iteration was trained
        return [e for e in population.exchanges if e.iteration < iteration][-1].values["rate"]

    for line in read_lines(log):
        assert line["numbers"] == list(range(9))
        assert line["hyperparameters"]["rate"] == pytest.approx(values(line["iteration"]))
    for step, name, value in events(tmp_path / "0"):
        if name == "hyperparameters/rate":
            assert value == pytest.approx(values(step // 4)[0], rel=1e-5)
    for number, run in enumerate(fake_wandb.begun):
        for row in run.logged:
            expected = values(row["env_steps"] // 4)[number]
            assert row["hyperparameters/rate"] == pytest.approx(expected)
