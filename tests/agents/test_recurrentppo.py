"""PPO with memory: sequences as they were taken, memories forgotten at episode ends, a chain."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.on_policy.recurrentppo import RecurrentPPO
from jaxrl.agent import Tag, derive
from jaxrl.parts.memory import RecurrentNetwork
from tests.probes import GAMMA, SignedLimit

KEY = jax.random.key(0)


def recurrent(env, params=None, iterations=10, **changes):
    options = {
        "num_envs": 4,
        "num_steps": 8,
        "num_epochs": 2,
        "num_minibatches": 2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
        "core_size": 8,
    } | changes
    steps = options["num_envs"] * options["num_steps"] * iterations
    return RecurrentPPO(env, env.default_params if params is None else params,
                        total_steps=steps, **options)  # fmt: skip


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_a_sequence_reads_as_its_steps_one_by_one(core):
    network = RecurrentNetwork(outputs=2, obs_ndim=1, core=core, core_size=5, hidden_sizes=(4,))
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(6, 3, 2)), jnp.float32)
    starts = jnp.asarray(rng.random((6, 3)) < 0.3).at[0].set(False)
    memory = jax.tree.map(lambda x: x + 0.5, network.initial(3))
    params = network.init(KEY, memory, obs, starts)
    read = jax.jit(network.apply)
    after, output, value = read(params, memory, obs, starts)
    assert starts.any()
    for t in range(6):
        # What a step sees of the past is its own environment's alone, and nothing at a start.
        fresh = network.initial(3)
        memory = jax.tree.map(
            lambda zero, x, t=t: jnp.where(starts[t][:, None], zero, x), fresh, memory
        )
        memory, one_output, one_value = read(
            params, memory, obs[t : t + 1], jnp.zeros((1, 3), bool)
        )
        np.testing.assert_allclose(one_output[0], output[t], atol=1e-6)
        np.testing.assert_allclose(one_value[0], value[t], atol=1e-6)
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.fixture(scope="module", params=[(0, "gru"), (4, "lstm")], ids=["whole", "cut"])
def collected(request):
    """An agent and the sequences of its second rollout, in which episodes end."""
    length, core = request.param
    # With values that are normalised, they are still those that the network gives.
    options = {"sequence_length": length, "core": core, "normalize_values": core == "lstm"}
    agent = recurrent(SignedLimit(limit=3), **options)
    kept = {}

    class Spy(RecurrentPPO):
        def improve(self, params, opt_state, batch, key, progress):
            kept["batch"] = batch
            return super().improve(params, opt_state, batch, key, progress)

    spy = Spy(agent.env, agent.env_params, **{h.name: getattr(agent, h.name)
                                              for h in agent.hyperparameters()})  # fmt: skip

    @jax.jit
    def second(state):
        state, _ = spy.step(state, 0)
        spy.step(state, 1)
        return state, kept.pop("batch")

    return agent, *second(spy.init(derive(KEY, Tag.INIT)))


def test_sequences_give_the_probabilities_that_they_were_taken_with(collected):
    """Wherever they begin, and across the ends of episodes: every ratio is 1 before an update."""
    agent, state, batch = collected
    length = agent.length
    assert batch.obs.shape[:2] == (4 * 8 // length, length)
    assert batch.starts.any()
    assert not batch.starts[:, 0].any()
    first = jax.tree.leaves(batch.memory)[0]
    assert np.any(first != 0)

    @jax.jit
    def read(memory):
        obs, starts, action = (
            jnp.moveaxis(x, 1, 0) for x in (batch.obs, batch.starts, batch.action)
        )
        _, dist, value = agent.read(state.params, memory, obs, starts)
        return jnp.moveaxis(value, 0, 1), jnp.moveaxis(dist.log_prob(action), 0, 1)

    value, log_prob = read(batch.memory)
    np.testing.assert_allclose(value, batch.value, atol=1e-5)
    np.testing.assert_allclose(log_prob, batch.log_prob, atol=1e-6)
    value, _ = read(jax.tree.map(lambda x: x + 1, batch.memory))
    assert np.abs(value - batch.value).max() > 0.1


def test_an_episode_s_end_is_where_memory_is_forgotten(collected):
    """What came before a start has no gradient into what comes after."""
    agent, state, batch = collected
    row, step = (int(x[0]) for x in np.nonzero(np.asarray(batch.starts)))

    def value(obs):
        moved = jnp.moveaxis(obs[None], 1, 0)
        memory = jax.tree.map(lambda x: x[row : row + 1], batch.memory)
        starts = batch.starts[row][:, None]
        return agent.read(state.params, memory, moved, starts)[2][step, 0]

    gradient = np.asarray(jax.jit(jax.grad(value))(batch.obs[row]))
    assert not gradient[:step].any()
    assert gradient[step].any()


def test_bad_lengths_are_refused_in_one_line():
    env = SignedLimit(limit=3)
    with pytest.raises(ValueError, match=r"sequence_length=3 does not divide num_steps=8"):
        recurrent(env, sequence_length=3)
    with pytest.raises(ValueError, match=r"num_minibatches=3 does not divide the 8 sequences of 4"):
        recurrent(env, sequence_length=4, num_minibatches=3)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_it_remembers_what_the_chain_began_with(core):
    """A return of 1 is that of always answering right; without memory it is 0 on average."""
    env, params = gymnax.make("MemoryChain-bsuite")
    agent = recurrent(
        env,
        params,
        iterations=120,
        core=core,
        num_envs=16,
        num_steps=36,
        num_minibatches=4,
        num_epochs=4,
        core_size=16,
        learning_rate=3e-3,
        gamma=0.99,
    )
    run = jaxrl.train(agent)
    evaluation = jaxrl.evaluate(run.agent, run.state, KEY, episodes=64)
    assert evaluation.returns.mean() == 1.0
