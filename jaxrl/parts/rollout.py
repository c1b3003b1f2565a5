"""Stepping a batch of environments with a policy, and resetting those whose episode ended."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.environments import is_taken_apart
from jaxrl.parts.trees import nbytes, strong

Act = Callable[..., tuple[Any, ...]]

STEPS_PER_RESET = 8  # of a rollout, for each reset that a pool draws anew
DRAWN = 2**22  # bytes of resets that a rollout draws before it; where they are more, at each step


class Actors(NamedTuple):
    """A batch of N environments between two rollouts.

    Attributes:
        env_state: states, leading axis N.
        obs: current observations (N, ...), an array or `Masked`.
        episode_return, episode_length: of the episodes under way (N,).
        starts: (obs, env_state) that finished environments go back to: with cached resets each
            one's own first (N, ...), with pooled ones the pool (pool_size, ...), else None.
        memory: what a policy with memory remembers, leading axis N; () without.
        episode_info: sums of the recorded entries of `info` over those episodes, name -> (N,).
    """

    env_state: Any
    obs: Any
    episode_return: jax.Array
    episode_length: jax.Array
    starts: Any
    memory: Any = ()
    episode_info: dict[str, jax.Array] = {}  # noqa: RUF012  (never changed in place)


class Transition(NamedTuple):
    """Time-major steps (T, N, ...) of a rollout.

    Attributes:
        obs: observation acted on.
        action: the policy's action, before it is mapped to the environment's units.
        reward: float32.
        terminated, truncated: the episode ended in a terminal state, or was cut there.
        final_obs: the observation the step led to, before any reset.
        extras: whatever the policy wants to keep with the step.
        info: the recorded entries of the environment's `info`, name -> (T, N), float32.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: Any
    extras: Any
    info: dict[str, jax.Array] = {}  # noqa: RUF012  (never changed in place)


class Episodes(NamedTuple):
    """Sums over the episodes that ended in a rollout, per environment (N,)."""

    ended: jax.Array
    returns: jax.Array
    lengths: jax.Array
    info: dict[str, jax.Array] = {}  # noqa: RUF012  (never changed in place)

    def metrics(self) -> dict[str, jax.Array]:
        """Mean return, length and recorded sums, NaN where no episode ended; how many ended.

        A mean that is no number is shown as infinite: NaN says that there is none.
        """
        ended = self.ended.sum()

        def mean(values: jax.Array) -> jax.Array:
            value = values.sum() / jnp.maximum(ended, 1)
            return jnp.where(ended > 0, jnp.where(jnp.isnan(value), jnp.inf, value), jnp.nan)

        sums = {"return": self.returns, "length": self.lengths, **self.info}
        means = {f"episode_{name}": mean(values) for name, values in sums.items()}
        return means | {"episodes": ended}


class Draws(NamedTuple):
    """What chance decides about steps of all N environments, whatever their actions are.

    Attributes:
        keys: of the steps (..., N).
        starts: (obs, env_state) that those which finish go back to (..., N), where they are fresh
            and `step` can be taken apart; with pooled ones, their rows (..., N); else None.
    """

    keys: jax.Array
    starts: Any


def reset_kind(env: Any) -> str:
    """ "fresh", "pool" or "cached": see `step_envs`.

    Pooled and cached resets take a step apart into `step_env`, `is_truncated` and a reset. Around
    an environment whose `step` does more, as in a wrapper, they would bypass it: then every step
    computes a reset, and a warning says so.
    """
    kind: str = getattr(env, "resets", "fresh")
    if kind == "fresh" or is_taken_apart(type(env)):
        return kind
    _warn_of_fresh(type(env).__name__, kind)
    return "fresh"


@functools.lru_cache(maxsize=64)  # once, not at every trace
def _warn_of_fresh(name: str, kind: str) -> None:
    warnings.warn(
        f"resets={kind!r} of the environment inside {name} would bypass {name}.step: every step "
        "computes a fresh reset instead, which is slow where resets are",
        stacklevel=4,
    )


def reset(
    key: jax.Array,
    env: Any,
    env_params: Any,
    num_envs: int,
    record: tuple[str, ...] = (),
    memory: Any = (),
) -> Actors:
    """`num_envs` environments at the start of their first episodes.

    Args:
        record: entries of the environment's `info` that rollouts are to sum over each episode.
        memory: what a policy with memory starts an episode with, of one environment.
    """
    kind = reset_kind(env)
    pooled = env.pool_size if kind == "pool" else 0
    # One batch of resets: a second one would be compiled anew, which is slow for physics.
    obs, env_state = draw_resets(key, env, env_params, num_envs + pooled)
    starts = (obs, env_state) if kind == "cached" else None
    if kind == "pool":
        starts = jax.tree.map(lambda x: x[num_envs:], (obs, env_state))
        obs, env_state = jax.tree.map(lambda x: x[:num_envs], (obs, env_state))
    zeros = jnp.zeros((num_envs,), jnp.float32)
    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), memory)
    return Actors(env_state, obs, zeros, zeros, starts, memory, dict.fromkeys(record, zeros))


def rollout(
    key: jax.Array,
    env: Any,
    env_params: Any,
    actors: Actors,
    act: Act,
    num_steps: int,
    length: jax.Array | None = None,
    initial_memory: Any = None,
    noise: Callable[[jax.Array, int], Any] | None = None,
) -> tuple[Actors, Transition, Episodes]:
    """Take `num_steps` steps in every environment.

    Args:
        act: `(obs (N, ...), key) -> (action, env_action, extras)` for the whole batch. Of a policy
            with memory, `(memory, obs, key) -> (memory, action, env_action, extras)`.
        length: a traced number of steps <= `num_steps` to take instead; the arrays keep
            `num_steps` rows, of which those from `length` on are zeros.
        initial_memory: of a policy with memory, what it starts an episode with (no axis of N).
        noise: `(key, num_steps) -> noise (num_steps, ...)`, whose rows `act` takes in the key's
            place, where all that it does with a key can be done before it sees an observation.

    Returns the environments afterwards, the transitions and the sums over finished episodes.
    """
    pool_key, key = jax.random.split(key)
    actors = refresh_pool(pool_key, env, env_params, actors, num_steps)

    # Random numbers of all steps at once: on a CPU, those of one step cost more than the step.
    act_key, env_key = jax.random.split(key)
    act_noise = noise(act_key, num_steps) if noise else jax.random.split(act_key, num_steps)

    def draws_of(key, *steps):
        return draw(key, env, env_params, (*steps, actors.episode_return.shape[0]))

    drawn_before = nbytes(jax.eval_shape(lambda key: draws_of(key, num_steps), env_key)) <= DRAWN
    chances = (
        act_noise,
        draws_of(env_key, num_steps) if drawn_before else jax.random.split(env_key, num_steps),
    )

    def body(carry, chance):
        actors, episodes = carry
        act_noise, draws = chance
        draws = draws if drawn_before else draws_of(draws)
        if initial_memory is None:
            memory, (action, env_action, extras) = actors.memory, act(actors.obs, act_noise)
        else:
            memory, action, env_action, extras = act(actors.memory, actors.obs, act_noise)
        stepped = step_envs(draws, env, env_params, actors, env_action)
        env_state, obs, reward, terminated, truncated, final_obs, info = stepped
        info = entries(info, tuple(actors.episode_info))
        done = terminated | truncated
        # The same sums for the return, the length and whatever is recorded.
        so_far = actors.episode_return, actors.episode_length, actors.episode_info
        sums = jax.tree.map(jnp.add, so_far, (reward, jnp.ones_like(reward), info))
        ended = jax.tree.map(lambda x: jnp.where(done, x, 0), sums)
        episodes = jax.tree.map(jnp.add, episodes, Episodes(done.astype(jnp.float32), *ended))
        transition = Transition(
            actors.obs, action, reward, terminated, truncated, final_obs, extras, info
        )
        returns, lengths, sums_of_info = jax.tree.map(lambda x: jnp.where(done, 0, x), sums)
        if initial_memory is not None:
            memory = strong(where_done(done, initial_memory, memory))
        actors = Actors(env_state, obs, returns, lengths, actors.starts, memory, sums_of_info)
        return (actors, episodes), transition

    zeros = jnp.zeros_like(actors.episode_return)
    nothing = Episodes(zeros, zeros, zeros, jax.tree.map(jnp.zeros_like, actors.episode_info))
    (actors, episodes), transitions = _scan(body, (actors, nothing), chances, length)
    return actors, transitions, episodes


def _scan(body: Any, carry: Any, inputs: Any, length: jax.Array | None) -> tuple[Any, Any]:
    """`lax.scan` of `body(carry, input)` over rows, of which only the first `length` are taken."""
    if length is None:
        return jax.lax.scan(body, carry, inputs)

    def write(t, carry_and_rows):
        carry, rows = carry_and_rows
        carry, row = body(carry, jax.tree.map(lambda x: x[t], inputs))
        return carry, jax.tree.map(lambda all_rows, x: all_rows.at[t].set(x), rows, row)

    def whole(carry, inputs):
        return jax.lax.scan(body, carry, inputs)

    empty = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(whole, carry, inputs)[1]
    )
    return jax.lax.fori_loop(0, length, write, (carry, empty))


def entries(info: dict[str, Any], names: tuple[str, ...]) -> dict[str, jax.Array]:
    """The named entries of an environment's `info` (N,), as float32."""
    return {name: jnp.asarray(info[name], jnp.float32) for name in names}


def where_done(done: jax.Array, start: Any, current: Any) -> Any:
    """`start` (with an axis of N, or for all alike) where `done` (N,), else `current` (N, ...)."""

    def choose(start: Any, x: jax.Array) -> jax.Array:
        return jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), start, x)

    return jax.tree.map(choose, start, current)


def draw(
    key: jax.Array, env: Any, env_params: Any, shape: tuple[int, ...], starts: Any = None
) -> Draws:
    """What chance decides about steps of shape (N,) or (T, N); `step_envs` takes a row of it.

    `starts`: (obs, env_state) in the place of fresh resets, for steps after which nothing counts.
    """
    kind = reset_kind(env)
    step_keys, start_keys = jax.random.split(key, (math.prod(shape), 2)).T
    if kind == "pool":
        starts = jax.random.randint(start_keys[0], shape, 0, env.pool_size)
    elif kind == "cached" or not is_taken_apart(type(env)):
        starts = None
    elif starts is None:
        flat = strong(jax.vmap(env.reset_env, in_axes=(0, None))(start_keys, env_params))
        starts = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)
    return Draws(step_keys.reshape(shape), starts)


def step_envs(
    draws: Draws, env: Any, env_params: Any, actors: Actors, action: jax.Array
) -> tuple[Any, ...]:
    """One step of all N environments; those that finish start anew, as `env.resets` says.

    - "fresh": from a reset of its own, which `draws` holds, or which an environment that has a
      `step` of its own computes in it;
    - "pool": it takes one of a few resets that every rollout draws anew, in whole or in part, which
      is cheaper where a reset costs as much as a step (physics engines);
    - "cached": it goes back to its own first state, as Brax's wrapper does.

    Returns (env_state, obs, reward, terminated, truncated, final_obs, info), each with leading axis
    N; `info` is the environment's own dict.
    """
    kind = reset_kind(env)
    if kind == "fresh" and draws.starts is None:
        stepped = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            draws.keys, actors.env_state, action, env_params
        )
        if len(stepped) != 6 or "final_observation" not in stepped[-1]:
            name = getattr(env, "name", type(env).__name__)
            raise ValueError(
                f"{name}: step returned {len(stepped)} values; agents need those of gymnax 1.0: "
                "obs, state, reward, terminated, truncated, info with 'final_observation'"
            )
        obs, env_state, reward, terminated, truncated, info = stepped
        final_obs = info["final_observation"]
    else:

        def step(key, env_state, action):
            stepped = env.step_env(key, env_state, action, env_params)
            return *stepped, env.is_truncated(stepped[1], env_params)

        final_obs, env_state, reward, terminated, info, truncated = jax.vmap(step)(
            draws.keys, actors.env_state, action
        )
        starts = draws.starts if kind == "fresh" else actors.starts
        if kind == "pool":
            starts = jax.tree.map(lambda x: x[draws.starts], starts)
        done = jnp.asarray(terminated, bool) | jnp.asarray(truncated, bool)
        obs, env_state = where_done(done, starts, (final_obs, env_state))
    return (
        strong(env_state),
        strong(obs),
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(terminated, bool),
        jnp.asarray(truncated, bool),
        strong(final_obs),
        info,
    )


def draw_resets(key: jax.Array, env: Any, env_params: Any, num: int) -> tuple[Any, Any]:
    """(obs, env_state) of `num` fresh resets, leading axis `num`."""
    keys = jax.random.split(key, num)
    return strong(jax.vmap(env.reset, in_axes=(0, None))(keys, env_params))


def refresh_pool(
    key: jax.Array, env: Any, env_params: Any, actors: Actors, num_steps: int
) -> Actors:
    """Put fresh resets into the pool before a rollout: all of it, or as many as pay.

    A reset costs about as much as a step, so there is one for every STEPS_PER_RESET steps of the
    rollout at most, in a place drawn at random.
    """
    if reset_kind(env) != "pool":
        return actors
    size, num_envs = env.pool_size, actors.episode_return.shape[0]
    num = min(size, max(1, num_steps * num_envs // STEPS_PER_RESET))
    if num == size:
        return actors._replace(starts=draw_resets(key, env, env_params, size))
    reset_key, place_key = jax.random.split(key)
    rows = (jax.random.randint(place_key, (), 0, size) + jnp.arange(num)) % size
    new = draw_resets(reset_key, env, env_params, num)
    starts = jax.tree.map(lambda pool, x: pool.at[rows].set(x), actors.starts, new)
    return actors._replace(starts=starts)
