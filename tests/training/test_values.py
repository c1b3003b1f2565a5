"""What users pass as values: NumPy numbers, plain strings for paths, other environments."""

import gymnax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.wrappers.purerl import GymnaxWrapper

import envs_jax
import jaxrl
from jaxrl.training.identity import describe
from jaxrl.training.memory import plan
from jaxrl.training.sinks import JsonLines
from tests.helpers import Toy


def toy(env=None, **changes):
    if env is None:
        env, params = gymnax.make("CartPole-v1")
    else:
        params = env.default_params
    return Toy(env, params, **{"total_steps": 32} | changes)


@pytest.fixture(scope="module")
def run():
    return jaxrl.train(toy(), 3)


def test_numpy_numbers_are_numbers(tmp_path, run):
    saved = jaxrl.train(toy(), np.int64(3), checkpoints=jaxrl.Checkpoints(str(tmp_path / "a")))
    np.testing.assert_array_equal(saved.history.metrics["weight"], run.history.metrics["weight"])
    checkpoints = jaxrl.Checkpoints(tmp_path / "b")
    population = jaxrl.sweep(toy(), seeds=np.arange(2), checkpoints=checkpoints)
    assert [row["seed"] for row in population.table] == [0, 1]
    assert len(jaxrl.sweep(toy(), seeds=np.int64(2))) == 2
    space = {"num_envs": np.array([2, 4]), "rate": np.array([0.5, 1.0], np.float32)}
    population = jaxrl.sweep(toy(), space, checkpoints=jaxrl.Checkpoints(tmp_path / "c"))
    assert [type(row["num_envs"]) for row in population.table] == [int] * 4
    assert type(toy(num_envs=np.int64(4)).num_envs) is int


def test_one_value_is_not_a_list_of_them():
    for value in (3, "3"):
        with pytest.raises(ValueError, match=r"num_envs='?3'?: give a list of values"):
            jaxrl.sweep(toy(), {"num_envs": value})


def test_a_sink_takes_a_string(tmp_path):
    jaxrl.train(toy(), callbacks=[JsonLines(str(tmp_path / "log.jsonl"))])
    assert (tmp_path / "log.jsonl").exists()


class Scaled(GymnaxWrapper):
    def __init__(self, env, factor):
        super().__init__(env)
        self.factor = factor


def test_environments_differ_by_options_and_wrappers():
    env = gymnax.make("CartPole-v1")[0]
    same = describe(gymnax.make("CartPole-v1")[0])
    others = [Scaled(env, 2.0), Scaled(env, 3.0)]
    others += [envs_jax.make("CartPole-v1", **x)[0] for x in ({}, {"resets": "pool"})]
    others.append(envs_jax.make("Breakout-MinAtar", sticky=0.1)[0])
    assert describe(env) == same
    found = [repr(describe(x)) for x in (env, *others)]
    assert len(set(found)) == len(found)


def test_checkpoints_of_another_environment_are_refused(tmp_path):
    checkpoints = jaxrl.Checkpoints(tmp_path)
    env = envs_jax.make("CartPole-v1")[0]
    jaxrl.train(toy(env), checkpoints=checkpoints)
    jaxrl.train(toy(env, total_steps=40), checkpoints=checkpoints)  # goes on
    pooled = envs_jax.make("CartPole-v1", resets="pool")[0]
    with pytest.raises(ValueError, match="another environment's options or wrappers"):
        jaxrl.train(toy(pooled, total_steps=48), checkpoints=checkpoints)


def test_a_single_member_that_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match="memory: one member needs 1,000 bytes, more than"):
        plan(1, lambda n: 1000 * n, limit=100)
    assert jnp.asarray(plan(4, lambda n: 100 * n, limit=250).batch) == 2
