"""Pgx (Koyama et al. 2023, arXiv:2303.17503): board and card games, an optional extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.suites import OPTIONS, SuiteEnv, SuiteState, imported
from jaxrl import imports

AGENT = 0  # the player that the agent is; pgx draws at each reset who of them begins
Opponent = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}."""
    return OPTIONS | {"opponent": "random", "masked": True}


def build(suite: str, name: str, opponent: str | Opponent, masked: bool) -> PgxEnv:
    """The game `name`. ValueError if the extra is not installed or there is no such opponent."""
    env = PgxEnv(imported("pgx", suite, name).make(name), f"{suite}/{name}", opponent)
    env.masked = masked
    return env


def random_move(obs: jax.Array, legal: jax.Array, key: jax.Array) -> jax.Array:
    """One of the legal actions, all as likely."""
    return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))


class PgxEnv(SuiteEnv):
    """A game of pgx, played against opponents that are part of the environment.

    A step is the agent's action and whatever the others answer, until it is the agent's turn again
    or the game is over; the reward is the sum of what the agent gets for all of them. An illegal
    action ends the game with pgx's penalty, a reward of -1.

    Args:
        opponent: "random", or `(observation float32, legal bool (n,), key) -> action`, or where one
            is: "my_package.my_module:name".
    """

    def __init__(self, env: Any, name: str, opponent: str | Opponent):
        super().__init__(env, name)
        self._opponent = opponent
        if callable(opponent):
            self._move = opponent
        elif opponent == "random":
            self._move = random_move
        else:
            self._move = imports.load(opponent, "opponent")

    @property
    def time_limit(self) -> int:
        return 10_000  # games end by themselves, but for some of MinAtar's

    @property
    def num_actions(self) -> int:
        return jax.eval_shape(self._env.init, jax.random.key(0)).legal_action_mask.shape[0]

    def action_mask(self, state: SuiteState, params: Any) -> jax.Array:
        return state.inner.legal_action_mask

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        init_key, key = jax.random.split(key)
        state, _ = self._until_our_turn(key, self._env.init(init_key))
        return self._seen(state), state

    def play(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        step_key, key = jax.random.split(key)
        state = self._env.step(state, action, step_key)
        reward = state.rewards[AGENT]
        state, more = self._until_our_turn(key, state)
        return self._seen(state), state, reward + more, state.terminated, {}

    def _until_our_turn(self, key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        """The state after the others' moves, and what the agent gets for them."""
        nothing = jnp.zeros((), state.rewards.dtype)
        if self._env.num_players == 1:
            return state, nothing

        def others(carry):
            _, state, _ = carry
            return (state.current_player != AGENT) & ~state.terminated

        def move(carry):
            key, state, reward = carry
            key, move_key, step_key = jax.random.split(key, 3)
            obs = jnp.asarray(state.observation, jnp.float32)
            action = self._move(obs, state.legal_action_mask, move_key)
            state = self._env.step(state, action, step_key)
            return key, state, reward + state.rewards[AGENT]

        return jax.lax.while_loop(others, move, (key, state, nothing))[1:]

    def _seen(self, state: Any) -> jax.Array:
        """What the agent sees, also where a game is over in the turn of another."""
        if self._env.num_players == 1:
            return state.observation
        mine = jnp.full_like(state.current_player, AGENT)
        return self._env.observe(state.replace(current_player=mine))
