"""TD3: its target in double precision, its delay, its first critic; DDPG as one of its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrl
from agents.off_policy.td3 import TD3
from jaxrl.parts.optimize import MISSING
from jaxrl.parts.replay import Batch
from jaxrl.spaces import from_box
from tests.helpers import assert_close, assert_same
from tests.probes import CHOICE, GAMMA, MATCH, Match, any_of, known_answers, settings

KEY = jax.random.key(0)
ENV = Match(continuous=True)
SIZE = 16
DDPG = {"num_critics": 1, "policy_delay": 1, "policy_noise": 0.0}


def make(**changes):
    options = {"hidden_sizes": (3,), "total_steps": 8000, "gamma": 0.9, "tau": 0.1}
    return TD3(ENV, ENV.default_params, **options | changes)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    obs, action, reward, next_obs = jnp.asarray(rng.normal(size=(4, SIZE)), jnp.float32)
    ended, valid = jnp.asarray(rng.random((2, SIZE)) < 0.5)
    return Batch(obs[:, None], jnp.tanh(action)[:, None], reward, ended, next_obs[:, None], valid)


def learner_of(agent):
    """With targets that are not what they are targets of, and actions that are not near 0."""
    first, second = (agent.init_learner(k, jnp.ones(1)) for k in jax.random.split(KEY))

    def spread(actor):
        return jax.tree.map(lambda x: x + 0.5, actor)

    return first._replace(
        actor=spread(first.actor),
        target_actor=spread(second.actor),
        target_critics=second.critics,
    )


def forward(params, x):
    """A network of one hidden layer in double precision."""
    layers = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
    hidden = np.maximum(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return (hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"])[0]


def test_the_critics_loss_is_that_of_a_plain_loop():
    """Wide noise, so that some of it is clipped, and some of the actions then are."""
    agent = make(policy_noise=1.5, noise_clip=0.7, reward_scale=2.0)
    learner, batch = learner_of(agent), batch_of()
    metrics = jax.jit(agent.update)(learner, batch, KEY, 0)[1]
    normal = np.asarray(jax.random.normal(KEY, (SIZE, 1)))[:, 0]
    losses = []
    for i in np.flatnonzero(batch.valid):
        target = 2 * float(batch.reward[i])
        if not batch.terminated[i]:
            obs = np.asarray(batch.next_obs[i], np.float64)
            noise = np.clip(1.5 * normal[i], -0.7, 0.7)
            action = np.clip(np.tanh(forward(learner.target_actor, obs)) + noise, -1, 1)
            next_q = [forward(c, np.append(obs, action)) for c in learner.target_critics]
            target += 0.9 * min(next_q)
        inputs = np.append(batch.obs[i], batch.action[i])
        losses.append(sum(0.5 * (forward(c, inputs) - target) ** 2 for c in learner.critics))
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-5)


def test_actor_and_targets_wait_for_their_turn():
    agent = make(policy_delay=3)
    learner, update = learner_of(agent), jax.jit(agent.update)
    for n in range(6):
        after, metrics = update(learner, batch_of(n), jax.random.fold_in(KEY, n), n)
        slow = [(x.actor, x.target_actor, x.target_critics, x.actor_opt) for x in (learner, after)]
        with pytest.raises(AssertionError):
            assert_same(after.critics, learner.critics)
        if n in (2, 5):
            halfway = jax.tree.map(
                lambda old, new: old + 0.1 * (new - old), learner.target_critics, after.critics
            )
            assert_close(after.target_critics, halfway, 1e-6)
            with pytest.raises(AssertionError):
                assert_same(after.actor, learner.actor)
        else:
            assert_same(*slow)
            assert metrics["actor_loss"] == np.float32(MISSING)
        learner = after


def test_the_actor_climbs_the_first_critic_alone():
    agent = make(policy_delay=1)
    learner, update = learner_of(agent), jax.jit(agent.update)
    usual = update(learner, batch_of(), KEY, 0)[0]
    first, second = learner.critics
    other = jax.tree.map(lambda x: x - 1, second)
    assert_same(
        update(learner._replace(critics=(first, other)), batch_of(), KEY, 0)[0].actor, usual.actor
    )
    swapped = update(learner._replace(critics=(second, first)), batch_of(), KEY, 0)[0]
    with pytest.raises(AssertionError):
        assert_same(swapped.actor, usual.actor)


def test_one_critic_without_delay_and_noise_is_ddpg():
    """Lillicrap et al. 2016, algorithm 1, written down by itself."""
    agent = make(**DDPG, learning_rate=1e-2, actor_learning_rate=3e-3)
    critic_adam, actor_adam = optax.adam(1e-2), optax.adam(3e-3)

    def mu(theta, obs):
        return jnp.tanh(agent.make_actor().apply(theta, obs))

    def q(phi, obs, action):
        return agent.make_critic().apply(phi, obs, action)[:, 0]

    def ddpg(state, batch):
        theta, phi, theta_target, phi_target, theta_opt, phi_opt = state
        next_q = q(phi_target, batch.next_obs, mu(theta_target, batch.next_obs))
        y = batch.reward + jnp.where(batch.terminated, 0, 0.9 * next_q)

        def loss(phi):
            errors = 0.5 * (q(phi, batch.obs, batch.action) - y) ** 2
            return jnp.where(batch.valid, errors, 0).sum() / batch.valid.sum()

        move, phi_opt = critic_adam.update(jax.grad(loss)(phi), phi_opt)
        phi = optax.apply_updates(phi, move)
        ascent = jax.grad(lambda theta: -q(phi, batch.obs, mu(theta, batch.obs)).mean())(theta)
        move, theta_opt = actor_adam.update(ascent, theta_opt)
        theta = optax.apply_updates(theta, move)
        nearer = lambda old, new: old + 0.1 * (new - old)  # noqa: E731
        theta_target = jax.tree.map(nearer, theta_target, theta)
        phi_target = jax.tree.map(nearer, phi_target, phi)
        return theta, phi, theta_target, phi_target, theta_opt, phi_opt

    learner = learner_of(agent)
    state = (
        *(learner.actor, learner.critics[0], learner.target_actor, learner.target_critics[0]),
        *(actor_adam.init(learner.actor), critic_adam.init(learner.critics[0])),
    )
    update, ddpg = jax.jit(agent.update), jax.jit(ddpg)
    for n in range(3):
        learner, _ = update(learner, batch_of(n), KEY, n)
        state = ddpg(state, batch_of(n))
    (critic,), (target_critic,) = learner.critics, learner.target_critics
    assert_close((learner.actor, critic, learner.target_actor, target_critic), state[:4], 1e-6)


def test_it_explores_with_noise_and_acts_without():
    agent = make(exploration_noise=0.3)
    learner = agent.init_learner(KEY, jnp.ones(1))
    obs = jnp.ones((4000, 1))
    action = np.asarray(agent.act(learner.actor, obs))
    explored = np.asarray(agent.explore(learner, obs, KEY, 0.0))
    assert np.abs(explored).max() <= 1
    assert (explored - action).std() == pytest.approx(0.3, abs=0.02)
    edge = jax.tree.map(lambda x: x + 50, learner.actor)
    assert np.asarray(agent.explore(learner._replace(actor=edge), obs, KEY, 0.0)).max() == 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, DDPG], ids=["td3", "ddpg"])
def test_reaches_the_known_answers(changes):
    rows = known_answers(continuous=True)
    env = any_of(rows)
    sizes = {"num_envs": 8, "num_updates": 2, "batch_size": 64, "buffer_size": 4096}
    sizes |= {"learning_starts": 256, "learning_rate": 3e-3, "hidden_sizes": (16,), "tau": 0.05}
    sizes |= {"gamma": GAMMA, "exploration_noise": 0.3, "total_steps": 8 * 2500}
    population = jaxrl.sweep(TD3(env, env.default_params, **sizes | changes), settings(rows))
    for i, row in enumerate(rows):
        if i in (CHOICE, MATCH):
            continue
        run = population[i]
        obs = jnp.array(row.observations)[:, None]
        action = jax.vmap(run.agent.policy(run.state))(obs, jax.random.split(KEY, len(obs)))
        action = from_box(run.agent.action_space, action)
        actual = run.agent.q_values(run.state.learner.critics, obs, action).mean(0)
        np.testing.assert_allclose(actual, np.max(row.q, axis=1), rtol=0.05, atol=0.1)
    returns = population.evaluate(episodes=32).returns.mean(axis=1)
    assert returns[CHOICE] > -0.4
    assert returns[MATCH] > -0.2
