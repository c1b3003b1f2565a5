"""What several test files share: a minimal agent, comparisons, and a look into programs."""

import math
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxrl
from jaxrl import Agent, static, traced
from jaxrl.agent import Tag, derive
from jaxrl.parts.rollout import Actors, reset, rollout


class ToyState(NamedTuple):
    key: jax.Array
    weight: jax.Array
    actors: Actors


class Toy(Agent):
    """Acts at random and adds `rate` x (noise + reward) to a weight: all that the engine needs.

    Compiles in a second. `traces` counts how many times `step` was traced.
    """

    traces = 0  # not annotated, so no field

    rate: float = traced(0.5, "[0, 10]", "of change")
    num_envs: int = static(2, "[1, inf)", "environments")
    num_steps: int = static(4, "[1, inf)", "steps")
    nan_iteration: float = traced(math.inf, "[0, inf]", "iteration that makes the weight NaN")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, key):
        actors = reset(
            derive(key, Tag.RESET), self.env, self.env_params, self.num_envs, self.record
        )
        return ToyState(key, jax.random.normal(derive(key, Tag.INIT)), actors)

    def step(self, state, t):
        Toy.traces += 1

        def act(obs, key):
            action = jax.random.randint(key, obs.shape[:1], 0, 2)
            return action, action, ()

        key = derive(state.key, Tag.ROLLOUT, t)
        actors, steps, episodes = rollout(
            key, self.env, self.env_params, state.actors, act, self.num_steps
        )
        noise = jax.random.normal(derive(state.key, Tag.LEARN, t))
        rare = lax.cond(t % 3 == 0, lambda w: jnp.sin(w), lambda w: 0.0 * w, state.weight)
        weight = 0.9 * state.weight + self.rate * (noise + steps.reward.mean()) + rare
        weight = jnp.where(t == self.nan_iteration, jnp.nan, weight)
        metrics = {"weight": weight, "loss": state.weight**2, **episodes.metrics()}
        return ToyState(state.key, weight, actors), metrics

    def learned(self, state):
        return state.weight

    def policy(self, state, deterministic=True):
        return lambda obs, key: (state.weight > 0).astype(jnp.int32)


def arrays(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays, random keys as their words."""

    def words(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [words(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, NaN equal to NaN."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    """Equal up to `tolerance`, absolute and relative, NaN equal to NaN."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


class StopAt(jaxrl.Callback):
    """Stops a run once an iteration is done."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def stops(self, progress: jaxrl.Progress) -> bool:
        return progress.iteration >= self.iteration


def interrupted(agent: Agent, iteration: int, seed: int) -> jaxrl.Run:
    """A run stopped by Ctrl-C once `iteration` is done."""

    class Press(StopAt):
        def stops(self, progress):
            if super().stops(progress):
                signal.raise_signal(signal.SIGINT)
            return False

    return jaxrl.train(agent, seed, callbacks=[Press(iteration)])


def primitives(jaxpr: Any) -> list[str]:
    """The names of all primitives of a jaxpr and of those inside it."""
    return [equation.primitive.name for equation in equations(jaxpr)]


def equations(jaxpr: Any) -> list[Any]:
    """The equations of a jaxpr and of those inside it."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += equations(inner)
    return found
