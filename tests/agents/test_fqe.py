"""FQE against exact values: a table's linear solve, and a linear system with continuous actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.offline.fqe import FQE
from jaxrl.agent import Policy
from tests.probes import GAMMA, Chain, Probe
from tests.records import chain_data, chain_values, data_of, make

KEY = jax.random.key(0)


@pytest.mark.slow
def test_fqe_equals_the_linear_solve():
    env = Chain()
    policy = np.tile([0.3, 0.7], (Chain.size, 1))

    def target(obs, key):
        return jax.random.bernoulli(key, 0.7).astype(jnp.int32)

    options = {"hidden_sizes": (), "tau": 0.02, "learning_rate": 3e-3, "target": target}
    agent = make(FQE, env, chain_data(env, 20_000), steps=20_000, batch_size=256, **options)
    run = jaxrl.train(agent)
    q = agent.make_critic().apply(run.state.learner.params, jnp.eye(env.size))
    exact = chain_values(policy)
    np.testing.assert_allclose(q, exact, atol=0.03)
    values = (policy * exact).sum(1)
    assert float(agent.value(run.state, KEY)) == pytest.approx(values.mean(), abs=0.03)


@pytest.mark.slow
def test_fqe_of_continuous_actions_is_exact_on_a_linear_system():
    """s' = 0.8 s + a, r = s + a, a = -s / 2: V(s) = c s, Q(s, a) = s + a + gamma c s'.

    V = 0.5 s + gamma V(0.3 s), so c = 0.5 / (1 - 0.3 gamma).
    """
    env = Probe(continuous=True)  # only for its spaces: actions in [-2, 2]
    rng = np.random.default_rng(0)
    s, a = rng.uniform(-3, 3, 10_000), rng.uniform(-2, 2, 10_000)
    onward = 0.8 * s + a
    going_on = np.zeros(10_000, bool)
    data = data_of(env, s[:, None], a[:, None], s + a, onward[:, None], going_on)
    options = {"hidden_sizes": (), "tau": 0.05, "target": lambda obs, key: -obs / 2}
    agent = make(FQE, env, data, steps=6000, batch_size=256, **options)
    run = jaxrl.train(agent)
    c = 0.5 / (1 - 0.3 * GAMMA)
    scaled = jnp.asarray(a[:, None] / 2, jnp.float32)
    q = agent.q_value(run.state.learner.params, data.obs, scaled)
    np.testing.assert_allclose(q, s + a + GAMMA * c * onward, atol=0.02)
    assert float(agent.value(run.state, KEY)) == pytest.approx(c * s[0], abs=0.02)


def test_a_policy_with_memory_is_refused():
    target = Policy(lambda: jnp.zeros(1), lambda memory, obs, key: (memory, 0))
    with pytest.raises(ValueError, match="fqe: target has a memory"):
        make(FQE, Chain(), chain_data(Chain(), 100), target=target)


def test_refused_without_a_policy_to_evaluate():
    with pytest.raises(ValueError, match="fqe: target=None: give it the policy"):
        make(FQE, Chain(), chain_data(Chain(), 100))
