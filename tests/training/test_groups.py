"""Members that a CPU advances group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
import envs_jax
from jaxrl.parts.trees import nbytes
from jaxrl.training import engine, programs
from jaxrl.training.members import stack_agents
from jaxrl.training.placement import Placement

SMALL = {
    "ppo": ("CartPole-v1", {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}),
    "sac": (
        "Pendulum-v1",
        {"num_envs": 1, "learning_starts": 4, "batch_size": 4, "buffer_size": 512},
    ),
    "abs": ("CartPole-v1", {"num_envs": 2, "min_steps": 4, "max_steps": 8, "num_minibatches": 2}),
}
MEMBERS, ITERATIONS = 4, 6


def small(name):
    env_id, values = SMALL[name]
    env, env_params = envs_jax.make(env_id)
    return agents.get(name)(env, env_params, total_steps=4_000, hidden_sizes=(8,), **values)


def population(name):
    one = small(name)
    return stack_agents([one.replace(gamma=0.9 + 0.02 * i) for i in range(MEMBERS)])


def advance(stacked):
    mesh = Placement.of_members(1).mesh
    states = programs.initialise(stacked, jax.random.split(jax.random.key(0), MEMBERS), mesh=mesh)
    run = jax.jit(lambda a, s: programs._iterations(a, s, 0, jnp.int32(ITERATIONS), 8))
    return run.lower(stacked, states).compile(), states


@pytest.mark.parametrize("name", ["ppo", "abs"])
def test_groups_do_what_all_members_do_at_once(name, monkeypatch):
    stacked = population(name)
    together, states = advance(stacked)
    monkeypatch.setattr(programs, "GROUP", 2)
    grouped, _ = advance(stacked)
    for x, y in zip(
        jax.tree.leaves(together(stacked, states)),
        jax.tree.leaves(grouped(stacked, states)),
        strict=True,
    ):
        assert x.shape == y.shape
        if jnp.issubdtype(x.dtype, jnp.floating):  # other batch sizes are rounded otherwise
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)
        else:
            assert (x == y).all()
    needed = [f.memory_analysis().temp_size_in_bytes for f in (together, grouped)]
    assert needed[1] < needed[0] + 1.25 * nbytes(states)  # copied once, not once for each group


def test_sizes_of_groups():
    """On a CPU, a divisor of the members' number; all at once where a replay would be copied."""

    def size(name, members):
        agent = small(name)
        states = jax.eval_shape(jax.vmap(agent.init), jax.random.split(jax.random.key(0), members))
        return programs.group_size(agent, states)

    sizes = {n: size("ppo", n) for n in (1, 7, 8, 9, 12, 16, 20, 31, 64)}
    assert sizes == {1: 1, 7: 7, 8: 8, 9: 9, 12: 6, 16: 8, 20: 5, 31: 31, 64: 8}
    assert size("sac", 16) == 16


def test_first_states_are_each_members_own():
    """On as many devices as there are; the members are those of a run alone."""
    stacked = population("ppo")
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    states = programs.initialise(stacked, keys, mesh=Placement.of_members(MEMBERS).mesh)
    for i in (0, MEMBERS - 1):
        alone = jax.jit(small("ppo").replace(gamma=0.9 + 0.02 * i).init)(keys[i])
        mine = jax.tree.map(lambda x, i=i: x[i], states)
        for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(alone), strict=True):
            if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_first_states_that_have_learnt_much_are_compiled_for_speed():
    env, env_params = envs_jax.make("sequences/sum")
    plain, learnt = (
        agents.get("grpo")(env, env_params, pretraining_steps=steps) for steps in (0, 300)
    )
    assert (plain.first_updates, learnt.first_updates) == (0, 300)
    quickly = {"xla_backend_optimization_level": 0}
    keys = jax.random.split(jax.random.key(0), 4)
    assert engine._options_of(programs.initialise, (plain, keys)) == quickly
    assert engine._options_of(programs.initialise, (learnt, keys[:3])) == quickly
    assert engine._options_of(programs.initialise, (learnt, keys)) == {}
    assert engine._options_of(programs.chunk, (plain, keys)) == {}
