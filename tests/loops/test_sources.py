"""Where a learner's batches come from, and which hyper-parameters have no effect with a source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.mixturesac import MixtureSAC
from agents.off_policy.sac import SAC
from agents.offline.bc import BC
from jaxrl.loops.sources import Collected, Mixed, Recorded
from tests.helpers import assert_same
from tests.probes import ConstantReward
from tests.records import data_of

KEY = jax.random.key(0)
ENV = ConstantReward(continuous=True)  # rewards 1
RECORDED = -7.0  # the reward of recorded steps, by which a batch says where it comes from


def records(size=50):
    action = np.linspace(-1, 1, size)[:, None]
    return data_of(ENV, np.full((size, 1), 3.0), action, np.full(size, RECORDED))


def agent(**changes):
    options = {"hidden_sizes": (8,), "batch_size": 16, "num_updates": 2, "total_steps": 64}
    options |= {"num_envs": 4, "num_steps": 2, "buffer_size": 64, "learning_starts": 16}
    return SAC(ENV, ENV.default_params, **options | changes)


def mixed(**changes):
    return agent(data=records(), data_share=0.5, **changes)


@pytest.fixture(scope="module")
def first_iterations():
    """A mixed SAC, and its states and metrics after iterations 0 to 3."""
    learner = mixed(normalize_observations=True)
    step, states, metrics = jax.jit(learner.step), [jax.jit(learner.init)(KEY)], []
    for t in range(4):
        state, row = step(states[-1], jnp.int32(t))
        states.append(state)
        metrics.append(row)
    return learner, states, metrics


# Mixed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "recorded"), [(0.25, 4), (0.5, 8), (0.9, 14)])
def test_a_share_of_each_batch_is_recorded(share, recorded, first_iterations):
    learner, states, _ = first_iterations
    source = learner.replace(data_share=share).source()
    batch = source.draw(states[-1].source, KEY, jnp.int32(3), 16)
    rewards = np.asarray(batch.reward)
    assert (rewards[:recorded] == RECORDED).all()
    assert (rewards[recorded:] == 1).all()
    assert batch.obs.shape == (16, 1)
    assert batch.valid.all()


def test_both_sources_draw_with_keys_of_their_own(first_iterations):
    learner, states, _ = first_iterations
    source, state, t = learner.source(), states[-1].source, jnp.int32(3)
    batch = source.draw(state, KEY, t, 16)
    keys = jax.random.split(KEY)
    halves = source.recorded.draw((), keys[0], t, 8), source.collected.draw(state, keys[1], t, 8)
    assert_same(batch, jax.tree.map(lambda *xs: jnp.concatenate(xs), *halves))


def test_nothing_is_learnt_before_learning_starts(first_iterations):
    """16 random steps, 8 per iteration: the second iteration is the first that learns."""
    _, states, metrics = first_iterations
    assert_same(states[1].learner, states[0].learner)
    assert np.isnan(metrics[0]["critic_loss"])
    for row in metrics[1:]:
        assert all(np.isfinite(row[name]) for name in ("critic_loss", "actor_loss", "q_mean"))
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), states[2].learner.actor, states[1].learner.actor
    )
    assert max(jax.tree.leaves(moved)) > 0


def test_steps_are_those_of_the_environments(first_iterations):
    learner, states, _ = first_iterations
    assert learner.unit == "environment steps"
    assert learner.steps_per_iteration == 8
    assert learner.num_iterations == 8
    stored = np.asarray(states[-1].source.replay.reward)
    assert (stored[:8] == 1).all()  # four iterations of two rows
    assert (stored[8:] == 0).all()
    alone = learner.replace(
        data_share=1.0, num_envs=8, num_steps=1, buffer_size=100_000, learning_starts=1000
    )
    assert (alone.unit, alone.steps_per_iteration) == ("gradient steps", 2)


def test_observations_are_normalised_by_both(first_iterations):
    """50 recorded observations of 3 before training, then eight collected ones of 1 at a time."""
    _, states, _ = first_iterations
    assert states[0].obs_moments.seen == 50
    assert states[0].obs_moments.mean[0] == pytest.approx(3)
    assert states[2].obs_moments.seen == 66
    assert states[2].obs_moments.mean[0] == pytest.approx((50 * 3 + 16) / 66)


def test_the_source_follows_from_data_and_share():
    assert isinstance(agent().source(), Collected)
    assert isinstance(mixed().source(), Mixed)
    recorded = SAC(ENV, ENV.default_params, data=records())
    assert isinstance(recorded.source(), Recorded)
    assert recorded.actors(recorded.init(KEY)) is None


def test_what_was_learnt_offline_goes_on_online():
    sizes = {"hidden_sizes": (8,), "batch_size": 16, "num_updates": 2}
    offline = SAC(ENV, ENV.default_params, data=records(), total_steps=8, **sizes)
    run = jaxrl.train(offline)
    online = agent(temperature=0.5)
    first = jaxrl.train(online, start=run, until=1)  # which does not learn yet
    assert (first.iteration, first.agent.unit) == (1, "environment steps")
    assert_same(first.state.learner, run.state.learner)
    assert first.state.key != run.state.key
    stored = np.asarray(first.state.source.replay.reward)
    assert (stored[:2] == 1).all()
    assert (stored[2:] == 0).all()
    whole = jaxrl.train(online, start=first)
    assert whole.iteration == 8
    with pytest.raises(AssertionError):
        assert_same(whole.state.learner.actor, run.state.learner.actor)
    with pytest.raises(ValueError, match="sac: start is a run of another agent, or of other sizes"):
        jaxrl.train(agent(hidden_sizes=(4,)), start=run)


# Windows of steps -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["collected", "recorded", "mixed"])
def test_every_source_draws_windows(kind, first_iterations):
    """Collected episodes have one step here; recorded ones go on, but for the last step."""
    recorded = records()._replace(terminated=jnp.zeros(50, bool))
    source = (
        agent(n_step=3) if kind == "collected" else agent(n_step=3, data=recorded, data_share=0.5)
    )
    source = source.source().recorded if kind == "recorded" else source.source()
    state = first_iterations[1][-1].source
    state = state._replace(replay=state.replay._replace(truncated=jnp.zeros((16, 4), bool)))
    batch = source.draw(state, KEY, jnp.int32(3), 16)
    assert batch.reward.shape == (16, 3)
    steps = np.asarray(batch.num_steps)
    at = {"collected": 0, "recorded": 16, "mixed": 8}[kind]
    assert (steps[at:] == 1).all()
    # Recorded actions go from -0.5 to 0.5 in steps of 1 / 49: they say how many steps are left.
    left = 1 + np.round((0.5 - np.asarray(batch.action)[:at, 0]) * 49)
    np.testing.assert_array_equal(steps[:at], np.minimum(left, 3))
    single = source._replace(n_step=1) if kind != "mixed" else first_iterations[0].source()
    assert single.draw(state, KEY, jnp.int32(3), 16).num_steps is None


def test_rewards_are_prepared_before_they_are_summed():
    """Three rewards of -7 + 2, not their sum + 2: a critic of zeros has that target's error."""
    data = records()._replace(terminated=jnp.zeros(50, bool))
    options = {"n_step": 3, "gamma": 1.0, "temperature": 1e-6, "reward_shift": 2.0}
    learner = SAC(
        *(ENV, ENV.default_params),
        **{"data": data, "num_updates": 1, "hidden_sizes": (), "total_steps": 8} | options,
    )
    state = jax.jit(learner.init)(KEY)
    zeros = jax.tree.map(jnp.zeros_like, (state.learner.critics, state.learner.target_critics))
    fresh = state.learner._replace(critics=zeros[0], target_critics=zeros[1])
    state, metrics = jax.jit(learner.step)(state._replace(learner=fresh), jnp.int32(0))
    assert 0.9 * 15**2 < metrics["critic_loss"] < 15**2  # the last two windows are shorter


# Refused ----------------------------------------------------------------------------------------


def test_windows_are_refused_where_they_have_no_effect_or_no_room():
    line = "n_step=3 has no effect on mixturesac; leave it out"
    with pytest.raises(ValueError, match=line):
        MixtureSAC(ENV, ENV.default_params, n_step=3)
    assert "n_step" not in {h.name for h in MixtureSAC.hyperparameters()}
    with pytest.raises(ValueError, match="buffer_size=64 does not hold n_step=17 steps of each"):
        agent(n_step=17)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_of_no_step_is_refused(share):
    line = f"sac: data_share={share} of batch_size=16 is .* at least one from each source"
    with pytest.raises(ValueError, match=line):
        agent(data=records(), data_share=share)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data_share": 0.0}, "data_share=0.0 is outside"),
        ({"data_share": 1.5}, "data_share=1.5 is outside"),
        ({"buffer_size": 8}, "buffer_size=8 does not hold two iterations"),
        ({"learning_starts": 65}, "learning_starts=65 is more than total_steps=64"),
    ],
)
def test_refused_in_a_mixture_as_elsewhere(changes, line):
    with pytest.raises(ValueError, match=line):
        agent(**{"data": records(), "data_share": 0.5} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_envs": 3},
        {"num_steps": 4},
        {"buffer_size": 48},
        {"lean_buffer": True},
        {"learning_starts": 5},
    ],
)
def test_collecting_has_no_effect_with_recorded_data_alone(changes):
    (name, value), *_ = changes.items()
    line = f"^sac: {name}={value} has no effect with recorded data alone; leave it out$"
    with pytest.raises(ValueError, match=line):
        SAC(ENV, ENV.default_params, data=records(), **changes)
    assert getattr(mixed(**changes), name) == value


def test_a_share_has_no_effect_without_recorded_data():
    with pytest.raises(ValueError, match=r"data_share=0\.5 has no effect without recorded data"):
        agent(data_share=0.5)


def test_defaults_are_not_refused():
    SAC(ENV, ENV.default_params, data=records(), buffer_size=100_000)
    assert "buffer_size" in SAC(ENV, ENV.default_params, data=records()).unused()


def test_an_agent_of_recorded_data_alone_does_not_declare_collecting():
    names = {h.name for h in BC.hyperparameters()}
    assert not names & {"num_envs", "num_steps", "buffer_size", "learning_starts", "data_share"}


def test_a_lean_replay_waits_for_a_second_row():
    """The first iteration has steps enough to learn from, but not their successors."""
    lean = agent(num_envs=16, num_steps=1, lean_buffer=True, total_steps=128)
    state, first = jax.jit(lean.step)(jax.jit(lean.init)(KEY), jnp.int32(0))
    assert np.isnan(first["critic_loss"])
    assert np.isfinite(jax.jit(lean.step)(state, jnp.int32(1))[1]["critic_loss"])


def test_more_gradient_steps_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="num_updates=1000000000 in 8 iterations are 8000000000"):
        agent(num_updates=10**9)
