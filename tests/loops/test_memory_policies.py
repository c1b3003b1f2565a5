"""Policies with memory: carried from step to step, new at each episode, learnt through time."""

from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrl
from agents.on_policy.ppo import PPO
from jaxrl import Agent, static, traced
from jaxrl.agent import Policy, Tag, derive, memoryless
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.optimize import clipped_adam, descend
from jaxrl.parts.returns import gae
from jaxrl.parts.rollout import Actors, Transition, reset, rollout, where_done
from tests.helpers import assert_same
from tests.probes import Probe

KEY = jax.random.key(3)
N, T = 6, 9
RESETS = ("fresh", "pool", "cached")


class Uneven(Probe):
    """Lasts 2 or 4 steps, as its reset draws; the reward is the action."""

    def __init__(self, resets="fresh", limit=100):
        super().__init__(limit=limit)
        self.resets, self.pool_size = resets, 8

    def step_env(self, key, state, action, params):
        obs, after, _, _, info = super().step_env(key, state, action, params)
        return obs, after, action.astype(jnp.float32), after.time >= 3 + after.sign, info


# The memory is carried and reset ----------------------------------------------------------------

START = {"steps": 0, "path": jnp.ones(2)}  # also of numbers that are no arrays


def count(memory, obs, key):
    """Acts by how many steps it remembers, and doubles what it holds besides."""
    steps = memory["steps"]
    memory = {"steps": steps + 1, "path": 2 * memory["path"]}
    return memory, steps, steps, memory


ENVS = {resets: Uneven(resets) for resets in RESETS}


@partial(jax.jit, static_argnums=0)
def two_rollouts(env, params, length):
    actors = reset(KEY, env, params, N, memory=START)

    def one(actors, key):
        actors, *rest = rollout(key, env, params, actors, count, T, length, START)
        return actors, rest

    return jax.lax.scan(one, actors, jax.random.split(KEY))


@pytest.mark.parametrize("length", [None, 7])
@pytest.mark.parametrize("resets", RESETS)
def test_rollouts_carry_memory_and_reset_it_where_episodes_end(resets, length):
    for limit in (100, 3):
        params = ENVS[resets].default_params.replace(max_steps_in_episode=limit)
        check_counts(*two_rollouts(ENVS[resets], params, length), length or T, limit)


def check_counts(actors, results, length, limit):
    remembered, endings = np.zeros(N, int), {"terminated": 0, "truncated": 0}
    for i in range(2):
        steps, episodes = jax.tree.map(lambda x, i=i: np.asarray(x[i]), results)
        returns = np.zeros(N)
        for t in range(length):
            np.testing.assert_array_equal(steps.action[t], remembered)
            remembered += 1
            np.testing.assert_array_equal(steps.extras["steps"][t], remembered)
            path = np.repeat(2.0 ** remembered[:, None], 2, axis=1)
            np.testing.assert_array_equal(steps.extras["path"][t], path)
            for name in endings:
                endings[name] += int(getattr(steps, name)[t].sum())
            done = (steps.terminated | steps.truncated)[t]
            so_far = remembered * (remembered - 1) / 2  # 0 + 1 + ...
            returns += np.where(done, so_far, 0)
            remembered = np.where(done, 0, remembered)
        np.testing.assert_array_equal(episodes.returns, returns)
    np.testing.assert_array_equal(actors.memory["steps"], remembered)
    # Both kinds of ending were seen, where both can happen.
    assert endings["terminated"] > 0
    assert (endings["truncated"] > 0) == (limit == 3)


def test_without_memory_nothing_is_carried():
    env = Uneven()

    def act(obs, key):
        return jnp.zeros(N, int), jnp.zeros(N, int), ()

    def two_steps(key):
        actors = reset(key, env, env.default_params, N)
        return actors, rollout(key, env, env.default_params, actors, act, 2)[0]

    before, after = jax.eval_shape(two_steps, KEY)
    assert before.memory == after.memory == ()


class Counter(Agent):
    """Acts by how many steps it remembers; learns nothing."""

    def policy(self, state, deterministic=True):
        return Policy(lambda: jnp.int32(0), lambda memory, obs, key: (memory + 1, memory))

    @property
    def steps_per_iteration(self):
        return 1


@pytest.mark.parametrize("resets", RESETS)
def test_evaluations_carry_memory(resets):
    for limit in (100, 3):
        params = ENVS[resets].default_params.replace(max_steps_in_episode=limit)
        result = jaxrl.evaluate(Counter(ENVS[resets], params), (), KEY, episodes=40)
        lengths = np.asarray(result.lengths)
        assert set(lengths) == {2, min(4, limit)}
        np.testing.assert_array_equal(result.returns, lengths * (lengths - 1) / 2)


def test_calling_a_policy_with_memory_is_refused():
    env = Uneven()
    policy = Counter(env, env.default_params).policy(())
    with pytest.raises(TypeError, match=r"^this policy has a memory: memory = policy.initial\(\)"):
        policy(jnp.ones(1), KEY)
    memory, action = policy.step(policy.step(policy.initial(), jnp.ones(1), KEY)[0], None, KEY)
    assert (memory, action) == (2, 1)


def test_calling_a_policy_without_memory_acts():
    policy = memoryless(lambda obs, key: 2 * obs)
    assert policy(3, KEY) == 6
    assert policy.step(policy.initial(), 3, KEY) == ((), 6)
    assert memoryless(policy) is policy


# PPO with a GRU ---------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Logits and value after a GRU has read one more observation (..., D)."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, memory, obs):
        memory, features = nn.GRUCell(self.width)(memory, obs)
        return memory, nn.Dense(self.outputs)(features), nn.Dense(1)(features)[..., 0]


class RecurrentState(NamedTuple):
    key: jax.Array
    params: Any
    opt_state: Any
    actors: Actors


class GRUPPO(Agent):
    """PPO whose actor and critic read a GRU; each gradient step is on a whole rollout."""

    num_envs: int = static(32, "[1, inf)", "environments")
    num_steps: int = static(16, "[1, inf)", "steps per environment and iteration")
    num_epochs: int = static(4, "[1, inf)", "gradient steps per iteration")
    width: int = static(16, "[1, inf)", "of the memory")
    learning_rate: float = traced(1e-2, "(0, inf)", "Adam's step size")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    gae_lambda: float = traced(0.95, "[0, 1]", "of the advantage estimates")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")

    @property
    def steps_per_iteration(self):
        return self.num_envs * self.num_steps

    def network(self):
        return Recurrent(self.width, self.action_space.n)

    def optimizer(self):
        return clipped_adam(self.learning_rate, 0.5)

    def initial(self):
        return jnp.zeros((self.width,))

    def init(self, key):
        actors = reset(
            derive(key, Tag.RESET),
            self.env,
            self.env_params,
            self.num_envs,
            self.record,
            self.initial(),
        )
        params = self.network().init(derive(key, Tag.INIT), self.initial(), actors.obs[0])
        return RecurrentState(key, params, self.optimizer().init(params), actors)

    def step(self, state, t):
        def act(memory, obs, key):
            memory, logits, _ = self.network().apply(state.params, memory, obs)
            dist = Categorical(logits)
            action = dist.sample(key)
            return memory, action, action, dist.log_prob(action)

        key = derive(state.key, Tag.ROLLOUT, t)
        actors, steps, episodes = rollout(
            key,
            self.env,
            self.env_params,
            state.actors,
            act,
            self.num_steps,
            initial_memory=self.initial(),
        )
        memory = state.actors.memory  # with which the rollout began
        _, values, next_values = self.unroll(state.params, memory, steps)
        ended = steps.terminated, steps.truncated
        advantages = gae(steps.reward, values, next_values, *ended, self.gamma, self.gae_lambda)

        def loss(params):
            logits, value, _ = self.unroll(params, memory, steps)
            dist = Categorical(logits)
            ratio = jnp.exp(dist.log_prob(steps.action) - steps.extras)
            clipped = jnp.clip(ratio, 1 - self.clip_range, 1 + self.clip_range)
            advantage = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
            value_loss = 0.5 * ((value - advantages - values) ** 2).mean()
            entropy = dist.entropy().mean()
            return policy_loss + 0.5 * value_loss - self.entropy_coef * entropy, value_loss

        def epoch(carry, _):
            params, opt_state, _, value_loss = descend(self.optimizer(), loss, *carry)
            return (params, opt_state), value_loss

        (params, opt_state), losses = jax.lax.scan(
            epoch, (state.params, state.opt_state), length=self.num_epochs
        )
        metrics = {"value_loss": losses.mean()} | episodes.metrics()
        return RecurrentState(state.key, params, opt_state, actors), metrics

    def unroll(self, params, memory, steps: Transition):
        """Logits, values and values of what followed, (T, N), with memories as they were then."""

        def advance(memory, step):
            memory, logits, value = self.network().apply(params, memory, step.obs)
            next_value = self.network().apply(params, memory, step.final_obs)[2]
            memory = where_done(step.terminated | step.truncated, self.initial(), memory)
            return memory, (logits, value, next_value)

        return jax.lax.scan(advance, memory, steps)[1]

    def policy(self, state, deterministic=True):
        def step(memory, obs, key):
            memory, logits, _ = self.network().apply(state.params, memory, obs)
            dist = Categorical(logits)
            return memory, dist.mode() if deterministic else dist.sample(key)

        return Policy(self.initial, step)


def memory_chain(length):
    """One bit is shown in the first two steps of `length` + 1, and has to be named in the last."""
    env, params = gymnax.make("MemoryChain-bsuite")
    return env, params.replace(memory_length=length)


def gru_ppo(length=4, iterations=60, **options):
    env, params = memory_chain(length)
    return GRUPPO(env, params, total_steps=512 * iterations, **options)


def test_training_unrolls_the_memory_that_acted():
    """Also across episode ends, and from the memory that the rollout began with."""
    agent = gru_ppo(num_envs=3, num_steps=7, iterations=1)

    def act(params, memory, obs, key):
        memory, logits, value = agent.network().apply(params, memory, obs)
        return memory, jnp.zeros(3, int), jnp.zeros(3, int), (logits, value)

    @jax.jit
    def twice(key):
        state = agent.init(key)
        acting = partial(act, state.params)

        def one(actors, key):
            after, steps, _ = rollout(
                key, agent.env, agent.env_params, actors, acting, 7, None, agent.initial()
            )
            return after, (actors.memory, steps)

        _, rolled = jax.lax.scan(one, state.actors, jax.random.split(key))
        began, steps = jax.tree.map(lambda x: x[1], rolled)
        return began, steps, agent.unroll(state.params, began, steps)

    began, steps, (logits, values, _) = twice(KEY)
    assert np.any(began)  # 7 steps of episodes of 5: in the middle of one
    assert steps.terminated.any()
    np.testing.assert_allclose(logits, steps.extras[0], atol=1e-6)
    np.testing.assert_allclose(values, steps.extras[1], atol=1e-6)


@pytest.mark.slow
def test_a_memory_solves_what_no_reaction_can():
    """MemoryChain's return is 1 or -1: 0 is chance."""
    agent = gru_ppo()
    run = jaxrl.train(agent)
    for deterministic in (True, False):
        result = jaxrl.evaluate(agent, run.state, KEY, 256, deterministic=deterministic)
        assert (result.lengths == 5).all()
        assert result.returns.mean() > 0.95
    reactive = PPO(
        *memory_chain(4),
        total_steps=agent.total_steps,
        num_envs=32,
        num_steps=16,
        num_minibatches=4,
        learning_rate=1e-2,
    )
    run = jaxrl.train(reactive)
    result = jaxrl.evaluate(reactive, run.state, KEY, 1024)
    assert abs(result.returns.mean()) < 0.15


@pytest.mark.slow
def test_memory_goes_through_the_engine():
    """Members beside each other, and a run that goes on, remember what single runs do."""
    agent = gru_ppo(iterations=4, num_envs=4, num_steps=7)
    agent = agent.replace(total_steps=28 * 6)
    whole = jaxrl.train(agent, seed=1)
    first = jaxrl.train(agent.replace(total_steps=28 * 3), seed=1)
    assert np.any(first.state.actors.memory)
    assert_same(jaxrl.train(agent, start=first).state, whole.state)
