"""The exact Hessian of the return of small Markov decision processes, and Newton steps on it.

Everything here is computed, nothing sampled, in float64: what the estimates of
`agents/on_policy/secondorder.py` are estimates of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.parts.curvature import truncated_cg

STATES, ACTIONS, GAMMA = 8, 3, 0.9
METHODS = ("gradient", "natural", "acgn1", "acgn2")
DAMPING = 1e-3
CAP = 3_000  # iterations


class MDP(NamedTuple):
    """A Markov decision process with rewards in [0, 1], so that Q >= 0."""

    transition: jax.Array  # (S, A, S)
    reward: jax.Array  # (S, A)
    start: jax.Array  # (S,)


def random_mdp(key: jax.Array) -> MDP:
    """Transitions to a few states each, uniform rewards and starts."""
    transition_key, reward_key = jax.random.split(key)
    weights = jax.random.gamma(transition_key, 0.2, (STATES, ACTIONS, STATES), jnp.float64)
    transition = weights / weights.sum(axis=-1, keepdims=True)
    reward = jax.random.uniform(reward_key, (STATES, ACTIONS), jnp.float64)
    return MDP(transition, reward, jnp.full((STATES,), 1 / STATES, jnp.float64))


def values(mdp: MDP, logits: jax.Array) -> jax.Array:
    """V (S,) of the softmax policy with these logits (S, A)."""
    policy = jax.nn.softmax(logits)
    transition = jnp.einsum("sa,sat->st", policy, mdp.transition)
    reward = (policy * mdp.reward).sum(axis=-1)
    return jnp.linalg.solve(jnp.eye(STATES) - GAMMA * transition, reward)


def action_values(mdp: MDP, logits: jax.Array) -> jax.Array:
    """Q (S, A) of the policy."""
    return mdp.reward + GAMMA * mdp.transition @ values(mdp, logits)


def occupancy(mdp: MDP, logits: jax.Array) -> jax.Array:
    """d(s) (S,), the sum over time of gamma^t P(s_t = s)."""
    transition = jnp.einsum("sa,sat->st", jax.nn.softmax(logits), mdp.transition)
    return jnp.linalg.solve(jnp.eye(STATES) - GAMMA * transition.T, mdp.start)


def expected_return(mdp: MDP, flat: jax.Array) -> jax.Array:
    """J of the policy with the logits `flat` (S A,)."""
    return mdp.start @ values(mdp, flat.reshape(STATES, ACTIONS))


def best_return(mdp: MDP) -> jax.Array:
    """J of the best policy, by value iteration."""

    def improve(_: Any, v: jax.Array) -> jax.Array:
        return (mdp.reward + GAMMA * mdp.transition @ v).max(axis=-1)

    return mdp.start @ lax.fori_loop(0, 400, improve, jnp.zeros((STATES,)))


class Decomposition(NamedTuple):
    """Hess J = surrogate + mixed + mixed^T, all (S A, S A)."""

    gradient: jax.Array  # of J (S A,)
    surrogate: jax.Array  # A1 + A2
    log_prob: jax.Array  # A2 alone
    mixed: jax.Array  # H12
    fisher: jax.Array  # weighted by the occupancy


def decompose(mdp: MDP, flat: jax.Array) -> Decomposition:
    """The parts of the Hessian of J at `flat` (S A,), each from its definition."""
    logits = flat.reshape(STATES, ACTIONS)
    d, policy = occupancy(mdp, logits), jax.nn.softmax(logits)
    q, weight = action_values(mdp, logits), d[:, None] * policy

    def log_policy(flat: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(flat.reshape(STATES, ACTIONS))

    score = jax.jacobian(log_policy)(flat)  # (S, A, S A)
    curvature = jax.hessian(log_policy)(flat)
    change = jax.jacobian(lambda flat: action_values(mdp, flat.reshape(STATES, ACTIONS)))(flat)
    a1 = jnp.einsum("sa,sai,saj->ij", weight * q, score, score)
    a2 = jnp.einsum("sa,saij->ij", weight * q, curvature)
    return Decomposition(
        gradient=jnp.einsum("sa,sai->i", weight * q, score),
        surrogate=a1 + a2,
        log_prob=a2,
        mixed=jnp.einsum("sa,sai,saj->ij", weight, score, change),
        fisher=jnp.einsum("sa,sai,saj->ij", weight, score, score),
    )


def direction(method: str, parts: Decomposition) -> jax.Array:
    """Where a method goes from here, for a step size of 1."""
    if method == "gradient":
        return parts.gradient
    matrix = {
        "natural": parts.fisher,
        "acgn1": -parts.surrogate,
        "acgn2": -parts.log_prob,
    }[method]
    return truncated_cg(lambda v: matrix @ v + DAMPING * v, parts.gradient, 50, 1e-8)[0]


def iterations_to_best(method: str, mdp: MDP, size: jax.Array) -> jax.Array:
    """Updates from the uniform policy until 99 % of what there is to gain is gained; CAP if never.

    Args:
        size: step size, a scalar.
    """
    start = jnp.zeros((STATES * ACTIONS,))
    lowest, best = expected_return(mdp, start), best_return(mdp)
    enough = lowest + 0.99 * (best - lowest)

    def short(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        i, flat = carry
        return (i < CAP) & (expected_return(mdp, flat) < enough)

    def update(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, flat = carry
        return i + 1, flat + size * direction(method, decompose(mdp, flat))

    return lax.while_loop(short, update, (jnp.int32(0), start))[0]
