"""envs_jax on physics engines: brax, MJX and, where it is installed, MuJoCo Playground."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.physics import PhysicsEnv, quiet
from tests.envs_jax.test_envs import QUICK, check_time_limit, check_types, rollout, row

with quiet():
    from brax.envs.base import State

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PENDULUM = "brax/inverted_pendulum"
OTHERS = [
    id
    for id in envs_jax.list_envs()
    if id.startswith(("brax/", "mjx/")) and id not in (PENDULUM, "mjx/inverted_pendulum")
]
PLAYGROUND = [id for id in envs_jax.list_envs() if id.startswith("playground/")]


def check_table(id):
    """The catalogue's row is the environment's; reset and step agree in their types."""
    env, params = envs_jax.make(id)
    assert env is envs_jax.make(id)[0]
    assert (env.name, env.resets, env.pool_size) == (id, "pool", 16)
    assert envs_jax.describe(id) == row(id, env, params)
    check_types(env, params, steps=["step"])  # of which `step_env`, slow to trace, is a part
    return env, params


def check_against_raw(env, params, num_steps=10):
    """Our observations are those that the engine's own reset and step give."""
    raw = env._env
    key = jax.random.key(0)
    actions = jax.random.uniform(key, (num_steps, env.num_actions), minval=-1.0, maxval=1.0)
    raw_step = jax.jit(raw.step, compiler_options=QUICK)
    our_step = jax.jit(env.step_env, compiler_options=QUICK)
    inner = jax.jit(raw.reset, compiler_options=QUICK)(key)
    obs, state = env.reset(key, params)
    np.testing.assert_allclose(obs, inner.obs, rtol=1e-4, atol=1e-5)
    for action in actions:
        obs, state, reward, terminated, _ = our_step(key, state, action, params)
        inner = raw_step(inner, action)
        np.testing.assert_allclose(obs, inner.obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(reward, inner.reward, rtol=1e-3, atol=1e-4)
        assert bool(terminated) == bool(inner.done)


def check_traced(env, params):
    """One program for all gravities and time limits; both change what happens."""
    traces = []

    @partial(jax.jit, compiler_options=QUICK)
    def run(gravity, limit):
        traces.append(1)

        def one(gravity, limit):
            changed = params.replace(gravity_scale=gravity, max_steps_in_episode=limit)
            return rollout(env, jax.random.key(0), changed)

        return jax.vmap(one)(gravity, limit)

    data = jax.tree.map(np.asarray, run(jnp.array([0.0, 1.0, 3.0]), jnp.array([2, 2, 2])))
    check_time_limit(data, 2)
    longer = jax.tree.map(np.asarray, run(jnp.array([1.0, 1.0, 1.0]), jnp.array([9, 9, 9])))
    check_time_limit(longer, 9)
    assert len(traces) == 1
    first = data["final"][:, 1]  # the first step that is truncated, none terminated before
    assert data["truncated"][:, 1].all()
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first[1], first[2])
    assert not np.allclose(data["after"][:, 1], first)
    np.testing.assert_allclose(longer["final"][1, :2], data["final"][1, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inverted_pendulum():
    env, params = check_table(PENDULUM)
    check_traced(env, params)


@pytest.mark.slow
def test_inverted_pendulum_steps_as_brax_does():
    env, params = envs_jax.make(PENDULUM)
    check_against_raw(env, params)
    assert not isinstance(env._env.sys.gravity, jax.core.Tracer)


def test_a_step_outside_jit_leaves_the_state_alone():
    class Writes:
        """Writes into the state that it is given, as many of brax's environments do."""

        action_size = 1

        def reset(self, key):
            zero = jnp.zeros(())
            return State(None, jnp.zeros(2), zero, zero, {"steps": zero})

        def step(self, state, action):
            state.metrics.update(steps=state.metrics["steps"] + 1)
            return state.replace(obs=state.obs + action)

    class Env(PhysicsEnv):
        def _with_gravity(self, scale):
            return self._env

    env = Env(Writes(), "writes")
    _, state = env.reset(jax.random.key(0), env.default_params)
    for _ in range(2):
        _, after, *_ = env.step_env(jax.random.key(1), state, jnp.ones(1), env.default_params)
        assert (state.inner.metrics["steps"], after.inner.metrics["steps"]) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("id", OTHERS)
def test_table(id):
    check_table(id)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["generalized", "positional", "mjx"])
def test_backends(backend):
    env, params = envs_jax.make(PENDULUM, backend=backend)
    check_types(env, params)
    check_against_raw(env, params)
    if backend == "mjx":  # whose gravity is kept elsewhere than in brax's own three
        check_traced(env, params)


@pytest.mark.slow
@pytest.mark.parametrize("id", ["brax/hopper", "brax/reacher"])
def test_environments_step_as_brax_does(id):
    env, params = envs_jax.make(id)
    check_against_raw(env, params, num_steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("id", PLAYGROUND)
def test_playground_table(id):
    pytest.importorskip("mujoco_playground")
    check_table(id)


@pytest.mark.slow
def test_playground_pendulum():
    pytest.importorskip("mujoco_playground")
    env, params = envs_jax.make("playground/PendulumSwingup")
    check_traced(env, params)
    check_against_raw(env, params)


def test_playground_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[playground\]'") as error:
        envs_jax.make("playground/CheetahRun", pool_size=999)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("brax/hopper", {"backend": "sprin"}, "unknown backend 'sprin'; did you mean spring"),
        ("brax/hopper", {"bakend": "mjx"}, "unknown option 'bakend'; did you mean backend"),
        ("mjx/hopper", {"backend": "mjx"}, "unknown option 'backend'"),
        ("brax/ant", {"sticky": 0.1}, "unknown option 'sticky'"),
        ("brax/ant", {"use_contact_forces": True}, "use_contact_forces"),
        ("playground/CheetahRun", {"impl": "jacks"}, "unknown impl 'jacks'"),
    ],
)
def test_errors_are_one_line(id, options, message):
    with pytest.raises(ValueError, match=message) as error:
        envs_jax.make(id, **options)
    assert "\n" not in str(error.value)


def test_options_reach_the_environment():
    env, _ = envs_jax.make(PENDULUM, resets="cached", pool_size=3)
    assert (env.resets, env.pool_size) == ("cached", 3)
    assert env is not envs_jax.make(PENDULUM)[0]
    assert envs_jax.make(PENDULUM, backend="spring")[0] is envs_jax.make(PENDULUM)[0]
    env, params = envs_jax.make("brax/hopper", exclude_current_positions_from_observation=False)
    assert env.observation_space(params).shape == (12,)


def run_python(program, folder):
    """(stdout, stderr) of a program in an interpreter of its own, run in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(envs_jax.__file__).parent.parent)},
    )
    return done.stdout, done.stderr


def test_nothing_is_printed(tmp_path):
    """Not by the imports, and not for half cheetah's deprecated model file (which would also log).

    And each suite is imported only when it is asked for.
    """
    program = (
        "import sys, envs_jax\n"
        "def loaded(*names): return [name for name in names if name in sys.modules]\n"
        "assert loaded('jax', 'gymnax', 'brax', 'mujoco') == []\n"
        "envs_jax.make('CartPole-v1')\n"
        "assert loaded('brax', 'mujoco') == []\n"
        "envs_jax.make('brax/halfcheetah')\n"
        "assert loaded('brax', 'mujoco_playground') == ['brax']\n"
    )
    assert run_python(program, tmp_path) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_quiet_lets_everything_else_through(capsys):
    def noise():
        with quiet():
            print("Failed to import warp: no such module")
            print("something happened")
            warnings.warn("Brax System, piplines and environments are old", stacklevel=1)
            warnings.warn("heed me", stacklevel=1)
            raise ImportError

    with pytest.warns(UserWarning, match="heed me") as seen, pytest.raises(ImportError):
        noise()
    assert len(seen) == 1
    assert capsys.readouterr().out == "something happened\n"
