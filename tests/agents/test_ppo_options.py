"""PPO's options: what an update may do, normalised values, parts of observations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import jaxrl
from agents.on_policy.ppo import PPO
from envs_jax.preprocessing import Flat
from jaxrl.parts.normalize import RunningMoments
from tests.agents.test_ppo import INF, KEY, minibatch, ppo
from tests.helpers import assert_close
from tests.probes import ActionChoice, ConstantReward, ObsValue

# What an update may do --------------------------------------------------------------------------


def improved(agent, **changes):
    """Parameters after one call of `improve` on a rollout, and its metrics."""
    agent = agent.replace(**changes)
    params, batch = minibatch(agent, 64)
    opt_state = agent.init_optimizer(params)
    improve = jax.jit(agent.improve)
    after, _, metrics = improve(params, opt_state, batch, KEY, jnp.float32(0.5))
    return params, after, metrics


def test_updates_stop_beyond_the_target_divergence():
    agent = ppo(ActionChoice(), learning_rate=0.03, num_epochs=8)
    params, free, metrics = improved(agent)
    assert metrics["approx_kl"] > 0.005
    _, stopped, metrics = improved(agent, kl_rule="stop", target_kl=0.003)
    taken = round(float(metrics["update_fraction"]) * 16)
    assert 1 <= taken < 16
    assert not np.allclose(*(jax.tree.leaves(x)[0] for x in (free, stopped)))
    # The steps until then are those without the rule: all of them, where it is never broken.
    _, same, metrics = improved(agent, kl_rule="stop", target_kl=1e3)
    assert metrics["update_fraction"] == 1
    assert_close(same, free, 1e-6)
    # A divergence that is broken at once leaves what the first step did, whose own was 0.
    _, one, metrics = improved(agent, kl_rule="stop", target_kl=1e-30)
    assert metrics["update_fraction"] == 1 / 16
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, one)), strict=True))


def test_the_step_size_follows_the_divergence():
    agent = ppo(ActionChoice(), learning_rate=0.03, num_epochs=8, learning_rate_end=1.0)
    agent = agent.replace(kl_rule="learning_rate")
    params, _ = minibatch(agent)
    adam, factor = agent.init_optimizer(params)
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def descend(kl, factor):
        (new, (_, factor)), metrics = agent.descend(params, (adam, factor), grads, kl, 0.0)
        return jax.tree.leaves(new)[0] - jax.tree.leaves(params)[0], factor, metrics

    usual, _, _ = descend(0.01, factor)
    for kl, wanted in [(0.021, 1 / 1.5), (0.019, 1.0), (0.006, 1.0), (0.004, 1.5)]:
        step, after, metrics = descend(kl, factor)
        assert after == metrics["learning_rate_factor"] == pytest.approx(wanted)
        np.testing.assert_allclose(step, wanted * usual, rtol=1e-4)
    assert descend(1.0, 1 / 32)[1] == 1 / 32
    assert descend(0.0, 32.0)[1] == 32


def test_advantages_are_normalised_over_what_is_said():
    agent = ppo(ActionChoice(), num_epochs=1, num_minibatches=2)
    advantage = jnp.arange(64.0)
    wanted = {"none": (31.5, 18.47), "batch": (0, 1)}
    seen = {}

    class Spy(PPO):
        def loss(self, params, batch, noise_key=None, progress=0.0):
            jax.debug.callback(lambda x: rows.append(np.asarray(x)), batch.advantage)
            return super().loss(params, batch, noise_key, progress)

    for kind in wanted:
        rows = []
        spy = Spy(agent.env, agent.env_params, num_epochs=1, num_minibatches=2, hidden_sizes=(8,),
                  num_envs=8, num_steps=8, normalize_advantages=kind)  # fmt: skip
        params, batch = minibatch(spy, 64)
        state = spy.init_optimizer(params)
        jax.block_until_ready(
            jax.jit(spy.improve)(params, state, batch._replace(advantage=advantage), KEY, 0.0)
        )
        jax.effects_barrier()
        seen[kind] = np.concatenate(rows)
    for kind, (mean, std) in wanted.items():
        assert len(seen[kind]) == 64
        assert seen[kind].mean() == pytest.approx(mean, abs=1e-5)
        assert seen[kind].std() == pytest.approx(std, rel=1e-3)


def test_schedules_reach_the_loss():
    """Half way to 0, a clip range of 0.4 cuts where one of 0.2 does, and the bonus is halved."""
    base = {"num_epochs": 1, "num_minibatches": 1, "learning_rate": 1e-3}
    agent = ppo(ActionChoice(), **base)

    def after(**changes):
        return improved(agent, **changes)[1]

    half = after(
        clip_range=0.4,
        clip_range_high=0.2,
        clip_range_end=1e-9,
        entropy_coef=0.2,
        entropy_coef_end=0.0,
    )
    assert_close(half, after(clip_range=0.2, clip_range_high=0.1, entropy_coef=0.1), 1e-7)


def test_deviations_may_depend_on_the_state_and_actions_be_squashed():
    env = ActionChoice(continuous=True)
    agent = ppo(env, log_std_start=-1.0, state_dependent_std=True, squash_actions=True)
    params, _ = minibatch(agent)
    assert "log_std" not in params
    dist = agent.distribution(params, jnp.asarray([[0.0], [5.0]]))
    np.testing.assert_allclose(dist.log_std, -1, atol=0.05)  # the actor's last layer is small
    assert dist.log_std[0] != dist.log_std[1]
    np.testing.assert_allclose(
        agent.env_action(jnp.array([[-50.0], [0.5], [50.0]]))[:, 0],
        [-2, 2 * np.tanh(0.5), 2],
        rtol=1e-6,
    )
    plain = ppo(env, log_std_start=-1.0)
    params, _ = minibatch(plain)
    np.testing.assert_array_equal(params["log_std"], [-1.0])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"target_kl": 0.1}, "ppo: target_kl=0.1 has no effect with kl_rule=none"),
        ({"squash_actions": True}, "ppo: squash_actions=True has no effect with discrete actions"),
        ({"log_std_floor": -3.0}, "ppo: log_std_floor=-3.0 has no effect with discrete actions"),
        (
            {"action_distribution": "beta"},
            "ppo: action_distribution='beta' has no effect with discrete actions",
        ),
        (
            {"critic_observation": "state"},
            "critic_observation='state' has no effect where the environment names no parts",
        ),
    ],
)
def test_what_has_no_effect_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        ppo(ActionChoice(), **changes)


def test_a_beta_policy_has_no_deviation_to_set():
    line = "log_std_floor=-3.0 has no effect with action_distribution=beta"
    with pytest.raises(ValueError, match=line):
        ppo(ActionChoice(continuous=True), action_distribution="beta", log_std_floor=-3.0)


# Values -----------------------------------------------------------------------------------------


def test_normalised_values_are_turned_back_where_advantages_are_estimated():
    """Episodes of one step and reward 1: a target of 1, an advantage of 1 - V."""
    agent = ppo(ConstantReward(), normalize_values=True)
    state = jax.jit(agent.init)(KEY)
    assert state.target_moments.seen == 0
    before = RunningMoments(jnp.float32(64), jnp.float32(100), jnp.float32(25))
    state = state._replace(target_moments=before)

    @jax.jit
    def batches(state):
        _, steps, _ = agent.collect(state, KEY)
        raw, _ = agent.advantages(state, steps, state.actors)
        return raw, *agent.normalize_targets(before, raw)

    raw, batch, after = batches(state)
    predicted = np.asarray(agent.value(state.params, raw.obs))
    np.testing.assert_allclose(raw.value, 100 + 5 * predicted, rtol=1e-6)
    np.testing.assert_allclose(agent.state_value(state, raw.obs), raw.value, rtol=1e-6)
    np.testing.assert_allclose(raw.target, 1, atol=1e-4)
    np.testing.assert_allclose(raw.advantage, 1 - raw.value, rtol=1e-5)
    # Half of what was seen is 1, the other half 100 +- 5.
    mean, var = 50.5, 12.5 + 49.5**2
    np.testing.assert_allclose([after.mean, after.var], [mean, var], rtol=1e-5)
    np.testing.assert_allclose(batch.value, predicted, atol=1e-5)
    np.testing.assert_allclose(batch.target, (1 - mean) / var**0.5, rtol=1e-4)
    np.testing.assert_allclose(batch.advantage, np.asarray(raw.advantage) / var**0.5, rtol=1e-4)


@pytest.mark.slow
def test_normalised_values_reach_far_targets_at_once():
    """V = -999 and 1001: 40 iterations are far too few for a critic that has to predict that."""
    agent = ppo(ObsValue(), iterations=40, value_clip_range=INF)
    settings = [{"env.bonus": 1000.0}]
    far = jaxrl.sweep(agent.replace(normalize_values=True), settings)[0]
    obs = jnp.array([[-1.0], [1.0]])
    np.testing.assert_allclose(far.agent.state_value(far.state, obs), [999, 1001], atol=0.5)
    plain = jaxrl.sweep(agent, settings)[0]
    assert np.abs(plain.agent.state_value(plain.state, obs) - 1000).min() > 100
    assert far.history.metrics["explained_variance"][-1] > 0.5


# Parts of observations --------------------------------------------------------------------------


class Privileged(ObsValue):
    """As MuJoCo Playground has it: the policy's `state`, and all there is beside it.

    The reward is the hidden sign, and what the action that the state asks for adds.
    """

    def see(self, state):
        return {"state": jnp.ones(1), "privileged_state": jnp.stack([jnp.float32(1), state.sign])}

    def reward(self, state, goodness):
        return state.sign + goodness

    def observation_space(self, params):
        box = spaces.Box(-10.0, 10.0, (1,))
        return spaces.Dict({"state": box, "privileged_state": spaces.Box(-10.0, 10.0, (2,))})


def test_the_critic_sees_what_the_policy_does_not():
    parts = {"actor_observation": "state", "critic_observation": "privileged_state"}
    agent = ppo(Flat(Privileged()), iterations=60, **parts)
    run = jaxrl.train(agent)
    where = agent.env.slices["privileged_state"]
    obs = jnp.ones((2, 3)).at[0, where.stop - 1].set(-1)
    value = agent.value(run.state.params, obs)
    np.testing.assert_allclose(value, [0, 2], atol=0.2)  # the action is found, and worth 1
    logits = agent.distribution(run.state.params, obs).logits
    np.testing.assert_array_equal(logits[0], logits[1])
    kernels = {k: v["params"]["Dense_0"]["kernel"].shape for k, v in run.state.params.items()}
    assert kernels == {"actor": (1, 8), "critic": (2, 8)}


def test_parts_that_are_not_there_are_one_line():
    line = "ppo: critic_observation='all' is no part of the observations of Privileged: it has "
    with pytest.raises(ValueError, match=line):
        ppo(Flat(Privileged()), critic_observation="all")
