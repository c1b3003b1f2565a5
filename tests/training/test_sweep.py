"""Populations: members are the runs they would be alone, and the table says which is which."""

import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import Lin, Log
from jaxrl.training import engine
from jaxrl.training.search import grid, random_search, settings_of
from tests.helpers import Toy, assert_close, assert_same
from tests.probes import TimeLimit

ENV = TimeLimit(limit=3)


def toy(env=ENV, iterations=20, **changes):
    return Toy(env, env.default_params, total_steps=8 * iterations, **changes)


def alone(row, **changes):
    """The single run of a row of the table."""
    overrides = {k: v for k, v in row.items() if k != "seed"}
    return jaxrl.train(jaxrl.override(toy(**changes), overrides), seed=row["seed"])


def assert_member(population, i, run, tolerance):
    chosen = population[i]
    assert_close(chosen.state, run.state, tolerance)
    assert_close(chosen.history.metrics, run.history.metrics, tolerance)
    np.testing.assert_array_equal(chosen.history.env_steps, run.history.env_steps)
    assert chosen.iteration == run.iteration


@pytest.mark.parametrize("seeds", [1, 3])
def test_members_equal_single_runs(seeds):
    """Of any number, also one that the two devices do not divide."""
    population = jaxrl.sweep(toy(), {"rate": [0.3, 0.6]}, seeds=seeds)
    assert len(population) == 2 * seeds
    assert (
        population.history.metrics["weight"].shape
        == population.history.env_steps.shape
        == (2 * seeds, 20)
    )
    assert [row["rate"] for row in population.table] == [0.3] * seeds + [0.6] * seeds
    # One member a device is not vmapped: the program of a single run. Else only roundings differ.
    tolerance = 0 if seeds == 1 else 1e-5
    for i, row in enumerate(population.table):
        assert_member(population, i, alone(row), tolerance)


def test_member_is_the_same_whoever_else_is_there():
    first = jaxrl.sweep(toy(), seeds=[7, 1, 2, 3])
    second = jaxrl.sweep(toy(), {"rate": [0.5]}, seeds=[9, 8, 7, 6])
    assert_same(first[0].state, second[2].state)
    test = [p.evaluate(episodes=3).returns for p in (first, second)]
    np.testing.assert_array_equal(test[0][0], test[1][2])


@pytest.mark.slow
def test_batches_do_not_change_members():
    whole = jaxrl.sweep(toy(), seeds=5)
    parts = jaxrl.sweep(toy(), seeds=5, batch_size=2)
    assert parts.table == whole.table
    assert_close(parts.history.metrics, whole.history.metrics, 1e-5)
    for i in range(5):
        assert_close(parts[i].state, whole[i].state, 1e-5)


def test_static_settings_are_a_program_each():
    lines = []
    engine._programs.clear()  # there is a limit to how many are kept
    programs = 0
    population = jaxrl.sweep(
        toy(iterations=24),
        {"rate": [0.3, 0.6], "num_envs": [2, 3]},
        seeds=2,
        announce=lambda line: lines.append((line, len(engine._programs))),
    )
    # Announced before anything is compiled; two settings take an init and a chunk each.
    assert lines[:2] == [
        ("program 1 of 2: 4 members, num_envs=2", programs),
        ("program 2 of 2: 4 members, num_envs=3", programs),
    ]
    assert [line.split(":")[0] for line, _ in lines[2:]] == ["memory", "memory"]
    assert len(engine._programs) == programs + 4
    assert [row["num_envs"] for row in population.table] == [2, 2, 3, 3] * 2
    # 16 iterations of 12 steps instead of 24 of 8: the rest is NaN.
    wide = np.array([row["num_envs"] == 3 for row in population.table])
    assert np.isnan(population.history.env_steps[wide, 16:]).all()
    assert np.isnan(population.history.metrics["weight"][wide, 16:]).all()
    assert np.isfinite(population.history.metrics["weight"][wide, :16]).all()
    assert np.isfinite(population.history.metrics["weight"][~wide]).all()
    for i in (1, 2):
        run = alone(population.table[i], iterations=24)
        assert len(run.history.env_steps) == (16 if wide[i] else 24)
        assert_member(population, i, run, 1e-5)
    assert population.evaluate(episodes=3).returns.shape == (8, 3)


def test_environment_parameters_sweep_without_recompiling():
    env = TimeLimit(limit=3)
    jaxrl.sweep(toy(env), {"env.bonus": [0.0, 1.0, 2.0, 3.0]})
    traces, programs = (Toy.traces, env.traces), len(engine._programs)
    population = jaxrl.sweep(
        toy(env), {"env.bonus": [0.0, 9.0], "env.max_steps_in_episode": [3, 6]}
    )
    assert (Toy.traces, env.traces) == traces
    assert len(engine._programs) == programs
    returns = np.nanmax(population.history.metrics["episode_return"], axis=1)
    np.testing.assert_array_equal(returns, [3, 6, 30, 60])
    np.testing.assert_array_equal(
        population.evaluate(episodes=2).returns, [[3] * 2, [6] * 2, [30] * 2, [60] * 2]
    )


def test_grids():
    assert grid({"a": [1, 2], "b": Lin(0.0, 1.0, 3)}) == [
        {"a": a, "b": b} for a in (1, 2) for b in (0.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(Log(1e-4, 1e-2, 3).grid(), [1e-4, 1e-3, 1e-2])
    assert Lin(2.0, 3.0, 1).grid() == [2.0]


def test_random_search():
    space = {"a": Log(1e-4, 1.0), "b": Lin(2.0, 3.0), "c": ["x", "y"]}
    draws = random_search(space, 2000)
    assert draws == random_search(space, 2000)
    assert draws != random_search(space, 2000, seed=1)
    assert settings_of(space, 5, 1) == random_search(space, 5, seed=1)
    assert all(1e-4 <= d["a"] <= 1 and 2 <= d["b"] <= 3 for d in draws)
    # Uniform in the logarithm and between the ends.
    np.testing.assert_allclose(np.mean([np.log10(d["a"]) for d in draws]), -2, atol=0.1)
    np.testing.assert_allclose(np.mean([d["b"] for d in draws]), 2.5, atol=0.03)
    assert 900 < sum(d["c"] == "x" for d in draws) < 1100
    population = jaxrl.sweep(toy(), {"rate": Lin(0.1, 0.9)}, random=3, seeds=2)
    assert len({row["rate"] for row in population.table}) == 3
    assert_member(population, 5, alone(population.table[5]), 1e-5)


def test_settings_can_be_listed():
    settings = [{"rate": 0.1}, {"rate": 0.2, "env.bonus": 1.0}]
    population = jaxrl.sweep(toy(), settings, seeds=[5])
    assert population.table == [{**s, "seed": 5} for s in settings]


@pytest.mark.parametrize(
    ("space", "options", "line"),
    [
        ({"rat": [1.0]}, {}, r"toy has no hyper-parameter 'rat'; did you mean rate\?"),
        ({"env": [1.0]}, {}, r"toy has no hyper-parameter 'env'"),
        ({"env.bonsu": [1.0]}, {}, r"has no parameter 'bonsu'; did you mean bonus\?"),
        ({"rate": [0.5, -1.0]}, {}, r"toy: rate=-1.0 is outside \[0, 10\]"),
        ({"num_envs": [2, 0]}, {}, r"toy: num_envs=0 is outside \[1, inf\)"),
        ({"rate": []}, {}, "rate: the grid is empty"),
        ({"rate": Lin(0.1, 0.2, 0)}, {}, "rate: the grid is empty"),
        ({"rate": [0.1]}, {"seeds": 0}, "seeds=0: at least one is needed"),
        ({"rate": [0.1]}, {"seeds": []}, r"seeds=\[\]: at least one is needed"),
    ],
)
def test_bad_input_is_refused_before_compiling(space, options, line):
    programs = len(engine._programs)
    with pytest.raises(ValueError, match=f"^{line}|{line}$") as error:
        jaxrl.sweep(toy(), space, **options)
    assert "\n" not in str(error.value)
    assert len(engine._programs) == programs


def test_an_empty_list_of_settings_is_refused():
    with pytest.raises(ValueError, match="empty"):
        jaxrl.sweep(toy(), [])


@pytest.mark.parametrize("options", [{"random": 0}, {"batch_size": -1}])
def test_no_members_are_refused(options):
    with pytest.raises(ValueError, match=r"0|-1"):
        jaxrl.sweep(toy(), {"rate": [0.1]}, **options)


def test_selected_member_acts_evaluates_and_goes_on():
    whole = jaxrl.sweep(toy(iterations=30), {"rate": [0.3, 0.6]}, seeds=2)
    population = jaxrl.sweep(toy(iterations=20), {"rate": [0.3, 0.6]}, seeds=2)
    run = population[2]
    assert run.agent.rate == np.float32(0.6)
    assert run.agent.policy(run.state)(jnp.zeros(1), jax.random.key(0)) in (0, 1)
    test = jaxrl.evaluate(run.agent, run.state, jax.random.key(0), episodes=4)
    assert (np.asarray(test.returns) == 3).all()
    longer = jaxrl.train(run.agent.replace(total_steps=240), start=run)
    assert longer.iteration == 30
    assert_close(longer.state, whole[2].state, 1e-5)
    with pytest.raises(IndexError, match="member 4 of a population of 4"):
        population[4]


def test_evaluations_during_a_sweep_do_not_change_it():
    plain = jaxrl.sweep(toy(), seeds=3)
    population = jaxrl.sweep(toy(), seeds=3, evaluations=2, episodes=4)
    assert_same(population.history.metrics, plain.history.metrics)
    np.testing.assert_array_equal(population.history.evaluations["env_steps"], [[80, 160]] * 3)
    assert (population.history.evaluations["returns"] == 3).all()
    assert population.history.evaluations["returns"].shape == (3, 2, 4)


def test_evaluation_draws_by_seed_and_member():
    population = jaxrl.sweep(toy(), seeds=3)
    result = population.evaluate(episodes=5, seed=1)
    assert result.returns.shape == result.lengths.shape == result.finished.shape == (3, 5)
    assert result.finished.all()


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_three_programs_do_it_all(seeds, monkeypatch):
    """First states, a chunk, an evaluation: also the memory plan, later chunks, the last test."""
    engine._programs.clear()
    compiled, seconds = engine.compiled, []

    def timed(*args, **statics):
        program, took = compiled(*args, **statics)
        seconds.append(took)
        return program, took

    monkeypatch.setattr(engine, "compiled", timed)
    population = jaxrl.sweep(toy(), seeds=seeds, evaluations=2, episodes=4)
    assert population.compile_seconds == pytest.approx(sum(seconds))  # the plan's as well
    population.evaluate(4)
    names = sorted(key[0].__name__ for key in engine._programs)
    assert names == ["chunk", "evaluate_all", "initialise"]


def test_a_member_that_is_not_finite_is_out_and_disturbs_nobody(tmp_path):
    settings = [{}, {"nan_iteration": 7.0}, {"rate": 0.1}]
    healthy = jaxrl.sweep(toy(), [settings[0], {}, settings[2]], evaluations=4, episodes=2)
    line = r"member 1 \(seed 0\) has a loss, .* not finite after iteration 7"
    reports = []

    def train(**options):
        return jaxrl.sweep(
            toy(), settings, evaluations=4, episodes=2, callbacks=[reports.append], **options
        )

    with pytest.warns(UserWarning, match=line) as warned:
        population = train(checkpoints=jaxrl.Checkpoints(tmp_path, every=0))
    assert len(warned) == 1  # not at every iteration
    np.testing.assert_array_equal(population.history.diverged_at, [np.nan, 7, np.nan])
    for name, values in population.history.metrics.items():
        np.testing.assert_array_equal(values[[0, 2]], healthy.history.metrics[name][[0, 2]])
        assert np.isnan(values[1, 7:]).all()
    assert np.isfinite(population.history.metrics["weight"][1, :7]).all()
    returns = population.evaluate(3).returns
    assert np.isnan(returns[1]).all()
    np.testing.assert_array_equal(returns[[0, 2]], healthy.evaluate(3).returns[[0, 2]])
    of_one = population.history.evaluations["returns"][1]
    np.testing.assert_array_equal(
        np.isnan(of_one).all(axis=1), population.history.evaluations["env_steps"][1] > 7 * 8
    )
    weights = population.history.metrics["weight"][[0, 2], -1]
    assert reports[-1].metrics["weight"] == pytest.approx(weights.mean())

    again = train(checkpoints=jaxrl.Checkpoints(tmp_path))  # nothing is left to do
    np.testing.assert_array_equal(again.history.diverged_at, population.history.diverged_at)

    with pytest.warns(UserWarning, match="not finite"):
        stopped = train(on_nan="stop")
    assert stopped.interrupted
    assert stopped.history.env_steps.shape[1] < 20
    with pytest.raises(KeyboardInterrupt):
        stopped.whole()
    with pytest.raises(ValueError, match="on_nan='no' is not one of report, stop"):
        train(on_nan="no")


def test_interrupted_sweep_keeps_the_members_that_ran():
    reports = []

    class Press(jaxrl.Callback):
        def stops(self, progress):
            reports.append(progress)
            if len(reports) == 25:  # in the second batch of two, after 20 chunks of the first
                signal.raise_signal(signal.SIGINT)
            return False

    population = jaxrl.sweep(toy(), seeds=6, batch_size=2, callbacks=[Press()])
    assert population.interrupted
    assert [row["seed"] for row in population.table] == [0, 1, 2, 3]
    assert population[1].iteration == 20
    assert population[3].iteration == 5
    assert np.isnan(population.history.metrics["weight"][2:, 5:]).all()
    whole = jaxrl.sweep(toy(), seeds=4, batch_size=2)
    np.testing.assert_array_equal(
        population.history.metrics["weight"][2:, :5], whole.history.metrics["weight"][2:, :5]
    )


def test_use_all_cores_gives_each_core_a_device():
    script = """
import os, jax, jaxrl
assert jaxrl.use_all_cores() == len(os.sched_getaffinity(0)) == jax.local_device_count()
assert jaxrl.use_all_cores() == jax.local_device_count()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_use_all_cores_leaves_a_number_set_before():
    assert jaxrl.use_all_cores() == 2
