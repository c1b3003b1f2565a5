"""Recorded steps of the probes, and agents that learn from them."""

import numpy as np

from envs_jax.datasets import Recording
from tests.probes import GAMMA, Chain, Match


def data_of(env, obs, action, reward, next_obs=None, terminated=None):
    """A dataset of steps given as arrays, actions in the environment's units."""
    size = len(reward)
    terminated = np.ones(size, bool) if terminated is None else terminated
    recording = Recording(
        np.asarray(obs, np.float32),
        np.asarray(action),
        np.asarray(reward, np.float32),
        np.asarray(terminated),
        np.zeros(size, bool),
        np.asarray(obs if next_obs is None else next_obs, np.float32),
    )
    return recording.dataset(env, env.default_params)


def bandit(env, size=2000, low=-2.0, high=2.0, seed=0):
    """Random actions in an episode of one step, rewarded as the probe does."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1.0, 1.0], size) if isinstance(env, Match) else np.ones(size)
    if env.continuous:
        action = rng.uniform(low, high, (size, 1)).astype(np.float32)
        wanted = 0.5 * sign if isinstance(env, Match) else 1.5
        reward = -np.abs(action[:, 0] - wanted)
    else:
        action = rng.integers(0, 2, size)
        reward = np.where(action == (sign > 0), 1.0, -1.0)
    return data_of(env, sign[:, None], action, reward)


def chain_data(env, size=4000, seed=0):
    """Uniform behaviour in `Chain`, whose next state is known."""
    rng = np.random.default_rng(seed)
    place, action = rng.integers(0, env.size, size), rng.integers(0, 2, size)
    to = np.maximum(place + 2 * action - 1, 0)
    out = to >= env.size
    eye = np.eye(env.size)
    return data_of(
        env, eye[place], action, out.astype(float), eye[np.minimum(to, env.size - 1)], out
    )


def chain_values(policy):
    """Q of a policy (S, A) of probabilities in `Chain`, by a linear solve."""
    size = Chain.size
    transition, reward = np.zeros((size, 2, size)), np.zeros((size, 2))
    for s in range(size):
        for a in range(2):
            to = max(s + 2 * a - 1, 0)
            if to >= size:
                reward[s, a] = 1.0
            else:
                transition[s, a, to] = 1.0
    flat = transition.reshape(size * 2, size)
    onward = (flat[:, :, None] * policy[None]).reshape(size * 2, size * 2)
    return np.linalg.solve(np.eye(size * 2) - GAMMA * onward, reward.ravel()).reshape(size, 2)


def make(cls, env, data, steps=2000, **changes):
    options = {"batch_size": 64, "hidden_sizes": (32,), "learning_rate": 3e-3, "gamma": GAMMA}
    options |= {"num_updates": 100, "total_steps": steps, "data": data} | changes
    declared = {h.name for h in cls.hyperparameters()} | {"data", "target"}
    chosen = {k: v for k, v in options.items() if k in declared}
    return cls(env, env.default_params, **chosen)
