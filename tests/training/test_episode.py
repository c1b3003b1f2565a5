"""An episode of which every step is kept is one that the policy has in its environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.training import episode as module
from jaxrl.training.episode import episode
from tests.loops.test_memory_policies import Counter, Uneven

KEY = jax.random.key(5)


@pytest.mark.parametrize("steps", [3, 100])  # that the program takes at once
def test_it_ends_where_the_episode_does_and_carries_memory(steps, monkeypatch):
    monkeypatch.setattr(module, "STEPS", steps)
    module._steps.clear_cache()
    env = Uneven()
    agent, lengths = Counter(env, env.default_params), set()
    for seed in range(4):
        seen = episode(agent, (), jax.random.key(seed))
        np.testing.assert_array_equal(seen.actions, np.arange(len(seen)))
        np.testing.assert_array_equal(seen.rewards, seen.actions)
        np.testing.assert_array_equal(seen.states.time, np.arange(len(seen)))
        assert seen.state(1).time == 1
        lengths.add(len(seen))
    assert lengths == {2, 4}
    module._steps.clear_cache()


def test_it_is_cut_where_asked_for():
    env = Uneven()
    seen = episode(Counter(env, env.default_params), (), KEY, max_steps=1)
    assert len(seen) == 1
    assert jnp.shape(seen.obs)[0] == 1
