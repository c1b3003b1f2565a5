"""XQC and CrossQ: unit columns, the joint pass, the target, rewards, the Hessian's metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from agents.off_policy.xqc import CROSSQ, CROSSQ_WN, XQC, critic_inputs
from jaxrl.agent import Agent
from jaxrl.parts.normalized_networks import params_of
from jaxrl.parts.replay import Batch
from jaxrl.parts.rollout import Transition
from jaxrl.spaces import from_box
from tests.helpers import assert_same, primitives
from tests.probes import CHOICE, GAMMA, MATCH, ConstantReward, any_of, known_answers, settings
from tests.records import data_of

KEY = jax.random.key(0)
ENV = ConstantReward(continuous=True)
SMALL = {
    "num_envs": 4,
    "num_updates": 2,
    "batch_size": 8,
    "learning_starts": 8,
    "total_steps": 400,
    "buffer_size": 64,
    "hidden_sizes": (6, 5),
    "actor_hidden_sizes": (4,),
}


def make(**changes):
    categorical = {} if changes.get("critic") == "squared" else {"num_atoms": 7}
    return XQC(ENV, ENV.default_params, **changes | categorical | SMALL)


def steps(seed=0, terminated=False):
    rng = np.random.default_rng(seed)
    return Batch(
        obs=jnp.asarray(rng.normal(size=(8, 1)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, (8, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=8), jnp.float32),
        terminated=jnp.full(8, terminated),
        next_obs=jnp.asarray(rng.normal(size=(8, 1)), jnp.float32),
        valid=jnp.ones(8, bool),
    )


def updates(agent):
    """Learners before and after gradient steps 0, 1, 2 and 3."""
    learners, update = [agent.init_learner(KEY, jnp.ones(1))], jax.jit(agent.update)
    for n in range(4):
        key = jax.random.fold_in(KEY, n)
        learners.append(update(learners[-1], steps(n), key, jnp.int32(n))[0])
    return learners


@pytest.fixture(scope="module")
def xqc():
    agent = make(learning_rate=0.01)
    return agent, updates(agent)


@pytest.fixture(scope="module")
def crossq():
    agent = make(**CROSSQ_WN)
    return agent, updates(agent)


# Networks -----------------------------------------------------------------------------------------


def lengths(layer, with_bias=False):
    squares = (np.asarray(layer["kernel"], float) ** 2).sum(axis=0)
    return np.sqrt(squares + (np.asarray(layer["bias"], float) ** 2 if with_bias else 0))


def test_columns_have_unit_length_after_every_step(xqc):
    for learner in xqc[1]:
        for network in (learner.actor, *learner.critics):
            for name, layer in network["params"].items():
                if "kernel" in layer:
                    np.testing.assert_allclose(lengths(layer), 1, rtol=1e-5, err_msg=name)
    moved = xqc[1][0].critics[0]["params"], xqc[1][-1].critics[0]["params"]
    with pytest.raises(AssertionError):
        assert_same(*moved)


def test_crossq_with_weight_norm_leaves_its_heads_to_weight_decay(crossq):
    for learner in crossq[1]:
        for critic in learner.critics:
            hidden = critic["params"]["hidden_0"]
            np.testing.assert_allclose(lengths(hidden, with_bias=True), 1, rtol=1e-5)
    heads = [critic["params"]["head"] for critic in crossq[1][-1].critics]
    assert min(np.abs(lengths(head) - 1).max() for head in heads) > 1e-5


def test_the_choices_are_those_of_the_papers():
    """CrossQ's critics are their own targets; nothing of XQC's own is left."""
    agent = make(**CROSSQ)
    learner = jax.eval_shape(agent.init_learner, KEY, jnp.ones(1))
    assert learner.target_critics == ()
    assert learner.reward_scale == ()
    assert set(agent.unused()) >= {"tau", "num_atoms", "value_bound", "gamma", "hessian_every"}
    default = XQC(ENV, ENV.default_params)
    assert default.hidden_sizes == (512,) * 4
    assert default.num_updates == 2 * default.steps_per_iteration
    np.testing.assert_allclose(default.atoms, np.linspace(-5, 5, 101), atol=1e-6)


def test_the_policy_is_clipped_and_acts_by_running_moments(xqc):
    agent, learners = xqc
    dist = agent.policy_of(jnp.array([0.3, -20.0]))
    assert (dist.mean, dist.log_std) == (pytest.approx(0.3), -10)
    learner = learners[-1]
    obs = jnp.linspace(-1, 1, 5)[:, None]
    together = agent.distribution(learner.actor, obs)
    alone = agent.distribution(learner.actor, obs[2])
    np.testing.assert_allclose(together.mean[2], alone.mean, rtol=1e-5)


# The critics' loss --------------------------------------------------------------------------------


def critic_loss(agent, learner, batch, params=None):
    def loss(params):
        return agent.critic_loss(learner, batch, KEY)(params)[0]

    return jax.jit(loss)(params_of(learner.critics) if params is None else params)


def test_the_next_step_shares_the_batch_norm(xqc):
    """Where all steps terminate s' is in no target, and yet in the loss: by the joint pass."""
    agent, learners = xqc
    batch = steps(terminated=True)
    other = batch._replace(next_obs=10 * batch.next_obs + 3)
    losses = [float(critic_loss(agent, learners[1], b)) for b in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_the_loss_is_that_of_a_plain_loop(crossq):
    """Half squared errors, in double precision, from one batch of both steps."""
    agent, learners = crossq
    learner, batch = learners[2], steps(5)
    next_dist = agent.distribution(learner.actor, batch.next_obs)
    next_action, next_log_prob = next_dist.sample_and_log_prob(KEY)
    inputs = np.concatenate(
        [critic_inputs(batch.obs, batch.action), critic_inputs(batch.next_obs, next_action)]
    )

    def q_by_numpy(params, x=inputs):
        norms = iter(range(3))

        def normalized(x):
            norm = params[f"BatchNorm_{next(norms)}"]
            x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
            return x * np.asarray(norm["scale"], float) + np.asarray(norm["bias"], float)

        x = normalized(np.asarray(x, float))
        for i in range(2):
            layer = jax.tree.map(lambda p: np.asarray(p, float), params[f"hidden_{i}"])
            x = normalized(np.maximum(x @ layer["kernel"] + layer["bias"], 0))
        head = jax.tree.map(lambda p: np.asarray(p, float), params["head"])
        return (x @ head["kernel"] + head["bias"])[:, 0]

    next_q = np.min([q_by_numpy(params)[8:] for params in learner.target_critics], axis=0)
    bonus = float(jnp.exp(learner.log_temperature)) * np.asarray(next_log_prob, float)
    target = np.asarray(batch.reward) + 0.95 * (next_q - bonus)
    expected = sum(
        0.5 * ((q_by_numpy(critic["params"])[:8] - target) ** 2).mean()
        for critic in learner.critics
    )
    assert critic_loss(agent, learner, batch) == pytest.approx(expected, rel=1e-3)


def test_no_gradient_reaches_the_target_without_target_critics():
    """The gradient is that of a target which is fixed, though it comes from the same pass."""
    agent = make(**CROSSQ)
    learner, batch = agent.init_learner(KEY, jnp.ones(1)), steps(1)
    params = params_of(learner.critics)
    frozen = make(**CROSSQ | {"target_critics": True})
    gradients = [
        jax.jit(jax.grad(lambda p, a=a, s=s: a.critic_loss(s, batch, KEY)(p)[0]))(params)
        for a, s in ((agent, learner), (frozen, learner._replace(target_critics=params)))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *gradients)


# Schedules, delays, rewards -----------------------------------------------------------------------


def test_the_actor_moves_at_every_third_step(xqc):
    _, learners = xqc
    actors = [(x.actor["params"], x.log_temperature) for x in learners]
    assert_same(actors[1], actors[2])
    assert_same(actors[2], actors[3])
    for before, after in ((0, 1), (3, 4)):
        with pytest.raises(AssertionError):
            assert_same(actors[before], actors[after])


def test_target_critics_follow_by_tau(xqc):
    agent, learners = xqc
    before, after = learners[2], learners[3]
    expected = jax.tree.map(
        lambda old, new: old + agent.tau * (new - old),
        before.target_critics,
        params_of(after.critics),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.target_critics, expected
    )


def test_the_step_size_falls_to_a_tenth():
    agent = make()
    last = agent.num_iterations * agent.num_updates
    rates = [float(agent.rate(agent.learning_rate, n)) for n in (0, last // 2, last)]
    np.testing.assert_allclose(rates, [3e-4, 1.65e-4, 3e-5], rtol=1e-5)


@pytest.mark.parametrize(
    ("length", "repeat", "discount"),
    [(1000, 1, 0.995), (200, 1, 0.975), (50, 1, 0.95), (1000, 8, 0.96)],
)
def test_the_discount_follows_the_length_of_episodes(length, repeat, discount):
    env, env_params = envs_jax.make("Pendulum-v1", action_repeat=repeat)
    agent = XQC(env, env_params.replace(max_steps_in_episode=length))
    assert float(agent.step_discount) == pytest.approx(discount)
    assert agent.replace(discount="fixed", gamma=0.9).step_discount == 0.9


def rollout_of(rewards, dones):
    zeros = jnp.zeros_like(rewards)
    return Transition(zeros, zeros, rewards, dones, jnp.zeros_like(dones), zeros, ())


def test_rewards_are_counted_as_they_come_and_scaled_as_they_are_drawn(xqc):
    """By the deviation of discounted returns (0.95 with episodes of 100), in double precision."""
    agent, learners = xqc
    rng = np.random.default_rng(0)
    rewards, dones = 3 * rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.2
    learner = agent.observe(
        learners[0], rollout_of(jnp.asarray(rewards, jnp.float32), jnp.asarray(dones))
    )
    values, value = [], np.zeros(4)
    for reward, done in zip(rewards, dones, strict=True):
        value = reward + 0.95 * value
        values.append(value)
        value = np.where(done, 0, value)
    std = np.std(values)
    assert jnp.sqrt(learner.reward_scale.moments.var) == pytest.approx(std, rel=1e-4)
    # An update sees them divided by it: as one without normalisation sees the quotient.
    plain, batch = make(normalize_rewards=False), steps()
    scaled = batch._replace(reward=batch.reward / jnp.float32(std))
    found, _ = jax.jit(agent.replace(learning_rate=3e-4).update)(learner, batch, KEY, jnp.int32(1))
    expected, _ = jax.jit(plain.update)(
        learner._replace(reward_scale=()), scaled, KEY, jnp.int32(1)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.critics, expected.critics
    )


def test_recorded_rewards_count_before_training():
    rng = np.random.default_rng(0)
    reward = 5 * rng.normal(size=30)
    data = data_of(ENV, np.ones((30, 1)), rng.uniform(-1, 1, (30, 1)), reward)
    agent = XQC(ENV, ENV.default_params, data=data, data_share=0.5, **SMALL)
    scale = jax.jit(agent.init)(KEY).learner.reward_scale
    assert scale.moments.var == pytest.approx(reward.var(), rel=1e-4)  # each step is an episode


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gamma": 0.9}, "gamma=0.9 has no effect with discount=episode"),
        (CROSSQ | {"tau": 0.1}, "tau=0.1 has no effect with target_critics=False"),
        (CROSSQ | {"value_bound": 9.0}, "value_bound=9.0 has no effect with critic=squared"),
        ({"hessian_every": 9}, "hessian_every=9 has no effect with hessian_iterations=0"),
    ],
)
def test_what_has_no_effect_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        make(**changes)


# The Hessian --------------------------------------------------------------------------------------


def test_the_hessian_is_not_measured_unless_asked_for():
    """No loop in an update without it, and the metrics only with it."""

    def traced(agent: Agent):
        learner = jax.eval_shape(agent.init_learner, KEY, jnp.ones(1))
        update = jax.make_jaxpr(agent.update, return_shape=True)
        program, shapes = update(learner, steps(), KEY, jnp.int32(0))
        loops = [name for name in primitives(program.jaxpr) if name in ("while", "scan")]
        return loops, set(shapes[1])

    off, of_off = traced(make())
    on, of_on = traced(make(hessian_iterations=3))
    assert len(on) > len(off)
    assert of_on - of_off == {"hessian_norm", "hessian_condition"}


@pytest.mark.slow
def test_the_condition_number_is_that_of_the_explicit_hessian(xqc):
    """Of the first critic, with numpy.linalg.eigvalsh; and only every so many steps."""
    agent, learners = xqc
    learner, batch = learners[2], steps(2)
    first, *others = params_of(learner.critics)
    flat, unravel = jax.flatten_util.ravel_pytree(first)
    agent = agent.replace(hessian_iterations=flat.size, hessian_every=2, normalize_rewards=False)
    learner = learner._replace(reward_scale=())
    critic_key = jax.random.split(KEY, 3)[0]
    loss_fn = agent.critic_loss(learner, batch, critic_key)
    explicit = jax.jit(jax.hessian(lambda x: loss_fn((unravel(x), *others))[0]))(flat)
    sizes = np.abs(np.linalg.eigvalsh(np.asarray(explicit, float)))
    update = jax.jit(agent.update)
    metrics = update(learner, batch, KEY, jnp.int32(4))[1]
    assert metrics["hessian_norm"] == pytest.approx(sizes.max(), rel=1e-3)
    # Single precision finds the smallest one as far as rounding of the largest lets it.
    if sizes.min() > 1e-5 * sizes.max():
        assert metrics["hessian_condition"] == pytest.approx(sizes.max() / sizes.min(), rel=0.2)
    else:
        assert metrics["hessian_condition"] > 1e4
    assert update(learner, batch, KEY, jnp.int32(5))[1]["hessian_norm"] < -1e38  # missing


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reaches_the_known_answers():
    every = known_answers(continuous=True)
    rows = [every[i] for i in (1, 2, CHOICE, MATCH, 6, 9)]
    env = any_of(rows)
    options = SMALL | {"num_envs": 8, "batch_size": 64, "buffer_size": 4096, "learning_starts": 256}
    agent = XQC(
        env,
        env.default_params,
        discount="fixed",
        gamma=GAMMA,
        learning_rate=3e-3,
        tau=0.05,
        normalize_rewards=False,
        value_bound=12.0,
        temperature=0.02,
        temperature_learning_rate=0.0,
        **options | {"hidden_sizes": (16, 16), "actor_hidden_sizes": (16,), "total_steps": 6_000},
    )
    population = jaxrl.sweep(agent, settings(rows))
    returns = population.evaluate(episodes=32).returns.mean(axis=1)
    assert returns[2] > -0.4  # of one choice, whose best action is 1.5 in [-2, 2]
    assert returns[3] > -0.3  # of an action that follows the observation
    for i in (0, 1, 4, 5):
        run, obs = population[i], jnp.array(rows[i].observations)[:, None]
        action = jax.vmap(run.agent.policy(run.state))(obs, jax.random.split(KEY, len(obs)))
        action = from_box(run.agent.action_space, action)
        actual = run.agent.q_values(run.state.learner.critics, obs, action).mean(0)
        expected = np.max(rows[i].q, axis=1)
        np.testing.assert_allclose(actual, expected, rtol=0.1, atol=0.2, err_msg=str(i))
