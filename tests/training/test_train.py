"""The loop: chunked and fused, going on, evaluating, stopping; one program, nothing retraced."""

import signal

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.agent import Tag, derive
from jaxrl.training import engine
from jaxrl.training.members import stack
from jaxrl.training.placement import Placement
from jaxrl.training.programs import chunk
from jaxrl.training.schedule import FEWEST, Schedule
from tests.helpers import Toy, assert_close, assert_same, interrupted, primitives
from tests.probes import ActionChoice, ObsValue, TimeLimit

ENV = TimeLimit(limit=3)


def toy(env=ENV, iterations=50, **changes):
    return Toy(env, env.default_params, total_steps=8 * iterations, **changes)


def test_run_has_a_row_for_each_iteration():
    run = jaxrl.train(toy())
    assert run.iteration == 50
    np.testing.assert_array_equal(run.history.env_steps, 8 * np.arange(1, 51))
    assert set(run.history.metrics) == {
        "weight",
        "loss",
        "episode_return",
        "episode_length",
        "episodes",
    }
    assert all(values.shape == (50,) for values in run.history.metrics.values())
    np.testing.assert_array_equal(run.history.metrics["weight"][-1], run.state.weight)
    # Every third step ends an episode of three steps with reward 1 each.
    ended = run.history.metrics["episodes"] > 0
    assert (run.history.metrics["episode_return"][ended] == 3).all()
    assert run.history.evaluations["returns"].shape == (0, 64)
    assert not run.interrupted
    assert run.run_seconds > 0


def test_chunked_equals_fused():
    """Up to a rounding: XLA may fuse a product and a sum in one program and not in the other."""
    agent = toy()
    run = jaxrl.train(agent, seed=3)
    state, metrics = jax.jit(jaxrl.fused)(agent, jax.random.key(3))
    assert_close(run.state, state, 1e-6)
    assert_close(run.history.metrics, metrics, 1e-6)


def test_the_seed_decides():
    same, other = jaxrl.train(toy(), seed=1), jaxrl.train(toy(), seed=2)
    assert_same(jaxrl.train(toy(), seed=1).state, same.state)
    assert same.state.weight != other.state.weight
    assert_same(same.state.key, jax.random.key(1))


@pytest.mark.parametrize("iterations", [1, 7, 97])
def test_progress_reports_every_chunk(iterations):
    reports = []
    run = jaxrl.train(toy(iterations=iterations), callbacks=[reports.append])
    seen = [r.iteration for r in reports]
    assert seen == sorted(set(seen))
    assert len(seen) >= min(iterations, FEWEST)
    assert [r.first for r in reports] == [0, *seen[:-1]]
    last = reports[-1]
    assert last.iteration == last.iterations == iterations
    assert last.env_steps == last.total_steps == 8 * iterations
    assert last.members == [0]
    assert last.batch == 0
    assert last.over
    assert last.metrics.keys() == run.history.metrics.keys()
    assert run.history.env_steps.shape == (iterations,)


def test_evaluations_do_not_change_training():
    plain = jaxrl.train(toy())
    for evaluations in (1, 3, 50):
        run = jaxrl.train(toy(), evaluations=evaluations, episodes=2)
        assert_same(run.state, plain.state)
        assert_same(run.history.metrics, plain.history.metrics)
        expected = 8 * np.round(50 / evaluations * np.arange(1, evaluations + 1))
        np.testing.assert_array_equal(run.history.evaluations["env_steps"], expected)
        assert run.history.evaluations["returns"].shape == (evaluations, 2)
        assert (run.history.evaluations["returns"] == 3).all()


def test_evaluations_are_made_where_the_schedule_says():
    """Which iterations those are is tested there."""
    for evaluations in (1, 3, 7):
        run = jaxrl.train(toy(iterations=7), evaluations=evaluations, episodes=2)
        schedule = Schedule(7, evaluations)
        expected = [8 * t for t in range(1, 8) if schedule.evaluates(t)]
        np.testing.assert_array_equal(run.history.evaluations["env_steps"], expected)


class Costly(TimeLimit):
    """Each step costs two."""

    def step_env(self, key, state, action, params):
        *stepped, info = super().step_env(key, state, action, params)
        return *stepped, info | {"cost": jnp.float32(2)}


def test_what_is_recorded_is_evaluated_and_shown():
    reports = []
    agent = toy(Costly(limit=3), iterations=4)
    options = {"evaluations": 2, "episodes": 2, "callbacks": [reports.append]}
    run = jaxrl.train(agent, **options, record=("cost",))
    np.testing.assert_array_equal(run.history.evaluations["cost"], [[6, 6]] * 2)
    assert reports[-1].metrics["evaluation_cost"] == 6
    assert run.agent.record == ("cost",)
    with pytest.raises(ValueError, match="record='cast' is not a number in the info"):
        jaxrl.sweep(agent, record=("cast",))


def test_every_evaluation_has_episodes_of_its_own():
    run = jaxrl.train(toy(ObsValue()), evaluations=2, episodes=20)
    first, second = run.history.evaluations["returns"]
    assert set(first) == set(second) == {-1, 1}
    assert (first != second).any()


def test_going_on_equals_one_long_run_bit_for_bit():
    whole = jaxrl.train(toy(iterations=60), seed=4)
    first = jaxrl.train(toy(iterations=25), seed=4)
    second = jaxrl.train(toy(iterations=60), start=first)
    assert_same(second.state, whole.state)
    assert second.iteration == 60
    np.testing.assert_array_equal(second.history.env_steps, whole.history.env_steps[25:])
    np.testing.assert_array_equal(
        second.history.metrics["weight"], whole.history.metrics["weight"][25:]
    )
    # The run that was gone on from is left as it was: its buffers were not given away.
    assert np.isfinite(first.state.weight)
    assert_same(jaxrl.train(toy(iterations=60), start=first).state, whole.state)
    with pytest.raises(ValueError, match=r"^toy: total_steps=200 leaves nothing to do after"):
        jaxrl.train(toy(iterations=25), start=first)


def test_interrupted_run_keeps_what_was_computed():
    handler = signal.getsignal(signal.SIGINT)
    run = interrupted(toy(iterations=80), 20, seed=2)
    assert signal.getsignal(signal.SIGINT) is handler
    assert run.interrupted
    assert run.iteration == 20
    assert run.history.env_steps[-1] == 160
    whole = jaxrl.train(toy(iterations=80), seed=2)
    np.testing.assert_array_equal(
        run.history.metrics["weight"], whole.history.metrics["weight"][:20]
    )
    resumed = jaxrl.train(toy(iterations=80), start=run)
    assert not resumed.interrupted
    assert_same(resumed.state, whole.state)


def test_second_interrupt_raises():
    def stop(report):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        jaxrl.train(toy(), callbacks=[stop])


def test_one_trace_a_run_and_none_for_new_values():
    env = TimeLimit(limit=3)
    engine._programs.clear()  # there is a limit to how many are kept
    before = Toy.traces
    jaxrl.train(toy(env, iterations=97))
    # Once for the shapes of its metrics, once for the loop.
    assert Toy.traces - before <= 2
    traces, env_traces, programs = Toy.traces, env.traces, len(engine._programs)
    jaxrl.train(toy(env, iterations=97, rate=2.0), seed=9)
    params = env.default_params.replace(bonus=jnp.asarray(5.0))
    run = jaxrl.train(toy(env, iterations=97).replace(env_params=params))
    assert run.history.metrics["episode_return"][3] == 18
    assert (Toy.traces, env.traces, len(engine._programs)) == (traces, env_traces, programs)
    jaxrl.train(toy(env, iterations=97, num_envs=1))
    assert len(engine._programs) > programs


def test_whole_numbers_are_taken_for_traced_values():
    programs = []
    for rate in (1.0, 1):
        run = jaxrl.train(toy(rate=rate))
        programs.append((len(engine._programs), float(run.state.weight)))
    assert programs[0] == programs[1]


def chunk_program(members):
    """A population's chunk as traced for two devices, and its arguments."""
    agents = stack([toy() for _ in range(members)])
    states = jax.vmap(lambda agent, key: agent.init(key))(
        agents, jax.random.split(jax.random.key(0), members)
    )
    placement = Placement.of_members(members)
    placed = placement.put_agents(agents), placement.put_states(agents, states)
    args = *placed, np.int32(0), np.int32(10)
    return chunk.trace(*args, mesh=placement.mesh, length=10), args


def test_population_keeps_its_branches_and_calls_nobody_back():
    program, _ = chunk_program(4)
    names = primitives(program.jaxpr.jaxpr)
    assert "cond" in names
    assert "while" in names
    assert not [name for name in names if "callback" in name]


def test_chunk_gives_its_state_away():
    program, (agents, states, t, stop) = chunk_program(4)
    program.lower().compile()(agents, states, t, stop)
    assert states.weight.is_deleted()
    assert states.actors.obs.is_deleted()
    assert not agents.rate.is_deleted()


def test_population_is_spread_over_devices():
    ((_, run),) = jaxrl.sweep(toy(), seeds=4).batches
    assert len(run.state.weight.sharding.device_set) == 2
    assert Placement.of_members(1).mesh.size == 1


def test_a_users_own_gymnax_environment_trains():
    env, params = gymnax.make("CartPole-v1")
    agent = Toy(env, params, total_steps=400)
    run = jaxrl.train(agent, evaluations=1, episodes=3)
    assert np.nanmin(run.history.metrics["episode_return"]) > 5
    assert run.history.evaluations["returns"].min() > 5


def test_fused_can_be_vmapped_by_hand():
    keys = jax.random.split(jax.random.key(0), 3)
    rates = jnp.array([0.1, 0.2, 0.3])
    one = jax.jit(lambda rate, key: jaxrl.fused(toy().replace(rate=rate), key))
    many = jax.jit(jax.vmap(one))(rates, keys)
    for i in range(3):
        assert_close(jax.tree.map(lambda x, i=i: x[i], many), one(rates[i], keys[i]), 1e-6)


def test_policy_acts_without_a_trainer():
    env = ActionChoice()
    agent = toy(env)
    state = agent.init(jax.random.key(0))
    assert agent.policy(state)(jnp.zeros(1), jax.random.key(0)) in (0, 1)


def test_training_draws_other_keys_than_evaluation():
    root = jax.random.key(0)
    keys = [derive(root, tag, 5) for tag in (Tag.ROLLOUT, Tag.EVALUATE, Tag.TEST)]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in keys}) == 3
