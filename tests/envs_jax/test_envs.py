"""envs_jax: the catalogue, `make`, and every gymnax environment."""

import subprocess
import sys
from functools import partial

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import envs_jax
from jaxrl import masks

GYMNAX = [id for id in envs_jax.list_envs() if "/" not in id]
# Their games take long to compile; Breakout stands for them in the fast tests.
LONG = ("Asterix-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar")
QUICK = {"xla_backend_optimization_level": 0}  # twice as fast to compile, slower to run
NUM_ENVS, NUM_STEPS, LIMIT = 2, 12, 5


def types(tree):
    """Shape, dtype and weak type of every leaf: what a scan's carry has to keep."""
    return [
        (jax.tree_util.keystr(path), x.shape, x.dtype, x.weak_type)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def row(id, env, params):
    """The row that the catalogue should hold."""
    space = env.action_space(params)
    seen = env.observation_space(params)
    is_discrete = isinstance(seen, spaces.Discrete)
    if isinstance(space, spaces.Discrete):
        action = f"Discrete({space.n})"
    else:
        low, high = (
            float(np.unique(np.round(bound, 6)).item()) for bound in (space.low, space.high)
        )
        action = f"Box({low:g}, {high:g}, {space.shape})"
    return {
        "id": id,
        "observation": f"Discrete({seen.n})" if is_discrete else str(seen.shape),
        "action": action,
        "time_limit": f"{float(params.max_steps_in_episode):g}",
    }


def rollout(env, key, params, num_steps=NUM_STEPS):
    """Random actions; a dict of (num_steps, ...) arrays, "before" being what the agent saw."""
    key, key_reset = jax.random.split(key)
    obs, state = env.reset(key_reset, params)

    def step(carry, key):
        obs, state = carry
        key_action, key_step = jax.random.split(key)
        action = env.action_space(params).sample(key_action)
        after, state, reward, terminated, truncated, info = env.step(
            key_step, state, action, params
        )
        record = {
            "before": obs,
            "after": after,
            "final": info["final_observation"],
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "time": state.time,
        }
        return (after, state), record

    return jax.lax.scan(step, (obs, state), jax.random.split(key, num_steps))[1]


def check_types(env, params, steps=("step", "step_env")):
    """Reset and step agree, nothing is weakly typed, observations match their space."""
    key = jax.random.key(0)
    action = jax.eval_shape(env.action_space(params).sample, key)
    obs, state = jax.eval_shape(env.reset, key, params)
    for step in steps:
        next_obs, next_state, reward, *flags, info = jax.eval_shape(
            getattr(env, step), key, state, action, params
        )
        assert types(obs) == types(next_obs)
        assert types(state) == types(next_state)
        assert not any(weak for *_, weak in types((obs, state, reward, info, params)))
        assert (reward.shape, reward.dtype) == ((), jnp.float32)
        assert all((flag.shape, flag.dtype) == ((), jnp.bool) for flag in flags)
    space, (obs, _) = env.observation_space(params), masks.split(obs)
    assert (obs.shape, obs.dtype) == (space.shape, space.dtype)
    assert obs.dtype == (jnp.int32 if isinstance(space, spaces.Discrete) else jnp.float32)
    for leaf in jax.tree.leaves(params):
        assert isinstance(leaf, jax.Array)


def check_time_limit(data, limit):
    """Truncated at exactly the limit, counted from the last reset; the last observation kept."""
    clock = np.zeros(data["time"].shape[0], int)
    for t in range(data["time"].shape[1]):
        clock += 1
        np.testing.assert_array_equal(data["truncated"][:, t], clock == limit)
        done = data["terminated"][:, t] | data["truncated"][:, t]
        clock[done] = 0
        np.testing.assert_array_equal(data["time"][:, t], clock)
        final, after = (masks.split(data[name])[0] for name in ("final", "after"))
        np.testing.assert_array_equal(final[~done, t], after[~done, t])


@pytest.mark.parametrize(
    "id", [pytest.param(id, marks=[pytest.mark.slow] * (id in LONG)) for id in GYMNAX]
)
def test_every_gymnax_environment(id):
    env, params = envs_jax.make(id)
    assert env is envs_jax.make(id)[0]
    assert env.name == id
    assert env.resets == "fresh"
    assert envs_jax.describe(id) == row(id, env, params)
    check_types(env, params)

    traces = []

    @partial(jax.jit, compiler_options=QUICK)
    def run(keys, params):
        traces.append(1)
        return jax.vmap(rollout, in_axes=(None, 0, None))(env, keys, params)

    keys = jax.random.split(jax.random.key(1), NUM_ENVS)
    long = jax.tree.map(np.asarray, run(keys, params))
    limit = jnp.asarray(LIMIT, params.max_steps_in_episode.dtype)
    short = jax.tree.map(np.asarray, run(keys, params.replace(max_steps_in_episode=limit)))
    assert len(traces) == 1
    for leaf in jax.tree.leaves((long, short)):
        assert np.isfinite(leaf).all()
    check_time_limit(long, int(params.max_steps_in_episode))
    check_time_limit(short, LIMIT)
    if not short["terminated"].any():
        assert short["truncated"].sum() == NUM_ENVS * (NUM_STEPS // LIMIT)


def test_no_environment_is_forgotten():
    assert set(gymnax.registered_envs) - set(GYMNAX) == {"MNISTBandit-bsuite"}
    assert len(GYMNAX) == 25


@pytest.mark.parametrize("id", ["Pendulum-v1", "DeepSea-bsuite", "Catch-bsuite"])
def test_dynamics_are_gymnax_s_own(id):
    env, params = envs_jax.make(id)
    raw, raw_params = gymnax.make(id)
    run = jax.jit(lambda env, key, params: rollout(env, key, params, 20), static_argnums=0)
    ours, theirs = run(env, jax.random.key(3), params), run(raw, jax.random.key(3), raw_params)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_deep_sea_counts_across_episodes():
    env, params = envs_jax.make("DeepSea-bsuite")
    step = jax.jit(lambda state, key: env.step(key, state, jnp.array(0), params)[1])
    _, state = env.reset(jax.random.key(0), params)
    for key in jax.random.split(jax.random.key(1), 16):
        state = step(state, key)
    assert int(state.total_bad_episodes) == 2


def test_truncation_is_not_termination_and_keeps_the_last_observation():
    env, params = envs_jax.make("Pendulum-v1")
    params = params.replace(max_steps_in_episode=jnp.array(3))
    step = jax.jit(env.step)
    obs, state = env.reset(jax.random.key(0), params)
    action = jnp.array([1.0])
    for _ in range(2):
        obs, state, _, terminated, truncated, _ = step(jax.random.key(1), state, action, params)
        assert not terminated
        assert not truncated
    # The same step without the auto-reset is what the last one should have shown.
    expected, stepped, _, terminated, _ = env.step_env(jax.random.key(1), state, action, params)
    assert bool(env.is_truncated(stepped, params))
    assert not terminated
    obs, state, _, terminated, truncated, info = step(jax.random.key(1), state, action, params)
    assert bool(truncated)
    assert not terminated
    np.testing.assert_allclose(info["final_observation"], expected, rtol=1e-5)
    assert not np.allclose(obs, expected)
    assert state.time == 0


def test_parameters_are_traced():
    env, params = envs_jax.make("CartPole-v1")
    traces = []

    @jax.jit
    def run(gravity, limit):
        traces.append(1)

        def one(gravity, limit):
            changed = params.replace(gravity=gravity, max_steps_in_episode=limit)
            return rollout(env, jax.random.key(0), changed, 8)

        return jax.vmap(one)(gravity, limit)

    data = run(jnp.array([0.0, 9.8, 50.0]), jnp.array([500, 4, 500]))
    assert not np.allclose(data["final"][0], data["final"][2])
    np.testing.assert_array_equal(data["truncated"].sum(1), [0, 2, 0])
    other = run(jnp.array([5.0, 9.8, 50.0]), jnp.array([2, 4, 500]))
    assert not np.allclose(data["final"][0], other["final"][0])
    np.testing.assert_array_equal(other["final"][1:], data["final"][1:])
    assert len(traces) == 1


def test_default_parameters_may_be_donated():
    env, params = envs_jax.make("Acrobot-v1")
    jax.tree.map(lambda x: x.delete(), params)
    _, again = envs_jax.make("Acrobot-v1")
    np.testing.assert_array_equal(again.available_torque, [-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(env.default_params.available_torque, [-1.0, 0.0, 1.0])


def test_discrete_observations_are_whole_numbers():
    env, params = envs_jax.make("FrozenLake-misc", is_slippery=False)
    obs, state = env.reset(jax.random.key(0), params)
    assert (obs, obs.dtype) == (0, jnp.int32)
    right = jnp.array(2)
    obs, state, _, terminated, _, info = env.step(jax.random.key(0), state, right, params)
    assert obs == 1
    down = jnp.array(1)  # into the hole at 5
    obs, state, _, terminated, _, info = env.step(jax.random.key(0), state, down, params)
    assert bool(terminated)
    assert info["final_observation"] == 5
    assert (obs, obs.dtype) == (0, jnp.int32)
    assert bool(env.observation_space(params).contains(obs))


def test_sticky_actions_stick_as_often_as_they_should():
    env, params = envs_jax.make("Breakout-MinAtar", sticky=0.25)
    check_types(env, params)
    num_steps = 4000

    def step(state, inputs):
        key, action = inputs
        last = state.last_action
        _, state, _, terminated, truncated, _ = env.step(key, state, action, params)
        return state, (last, state.last_action, terminated | truncated)

    keys = jax.random.split(jax.random.key(2), num_steps)
    asked = np.arange(num_steps) % 2 + 1
    _, state = env.reset(jax.random.key(0), params)
    last, done_action, done = jax.jit(lambda *a: jax.lax.scan(step, *a))(
        state, (keys, jnp.asarray(asked))
    )[1]
    last, done_action, done = map(np.asarray, (last, done_action, done))
    assert last[0] == 0
    assert (done_action[done] == 0).all()  # the first "last action" of the next episode
    differs = ~done & (last != asked)
    stuck = done_action[differs] == last[differs]
    assert (stuck | (done_action[differs] == asked[differs])).all()
    assert abs(stuck.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / differs.sum())


def test_sticky_action_is_the_one_that_is_played():
    env, params = envs_jax.make("CartPole-v1", sticky=1.0)
    plain, _ = envs_jax.make("CartPole-v1")
    _, state = env.reset(jax.random.key(0), params)
    key, one, zero = jax.random.key(1), jnp.array(1), jnp.array(0)
    obs, *_ = env.step_env(key, state, one, params)
    expected, *_ = plain.step_env(key, state.inner, zero, params)
    np.testing.assert_allclose(obs, expected, rtol=1e-6)
    assert envs_jax.make("CartPole-v1", sticky=0.0)[0] is plain


def test_options_reach_the_environment():
    env, params = envs_jax.make("DeepSea-bsuite", size=5, resets="pool", pool_size=4)
    assert env.observation_space(params).shape == (5, 5)
    assert (env.resets, env.pool_size) == ("pool", 4)
    lists = envs_jax.make("FrozenLake-misc", desc=["SF", "FG"])
    assert lists[0] is envs_jax.make("FrozenLake-misc", desc=("SF", "FG"))[0]
    assert lists[0].observation_space(lists[1]).n == 4


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("CartPole-v2", {}, "did you mean CartPole-v1"),
        ("cartpole", {}, "did you mean CartPole-v1"),
        ("hopper", {}, "brax/hopper"),
        ("qqq", {}, "jaxrl list envs"),
        ("MNISTBandit-bsuite", {}, "downloads"),
        ("brax/swimmer", {}, "jnp.clip"),
        ("mjx/swimmer", {}, "jnp.clip"),
        ("CartPole-v1", {"stiky": 0.1}, "unknown option 'stiky'; did you mean sticky"),
        ("CartPole-v1", {"sticky": 1.5}, r"sticky=1.5 is outside \[0, 1\]"),
        ("CartPole-v1", {"sticky": float("nan")}, "sticky=nan is not a number"),
        ("CartPole-v1", {"sticky": "often"}, "CartPole-v1: "),
        ("Pendulum-v1", {"sticky": 0.1}, "discrete"),
        ("CartPole-v1", {"resets": "pol"}, "did you mean pool"),
        ("CartPole-v1", {"pool_size": 0}, "pool_size=0"),
        ("DeepSea-bsuite", {"size": {}}, "size={} is not a whole number"),
    ],
)
def test_errors_are_one_line(id, options, message):
    with pytest.raises(ValueError, match=message) as error:
        envs_jax.make(id, **options)
    assert "\n" not in str(error.value)


def test_describe_refuses_what_make_refuses():
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        envs_jax.describe("CartPole")


def test_the_catalogue_imports_no_library():
    program = (
        "import sys, envs_jax; [envs_jax.describe(id) for id in envs_jax.list_envs()];"
        "print([m for m in ('jax', 'gymnax', 'brax', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
