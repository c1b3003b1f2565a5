"""pgx/: games against an opponent within the environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from tests.envs_jax.suite_checks import check_against, check_environment, check_training

pgx = pytest.importorskip("pgx")

GAME = "pgx/tic_tac_toe"


def first_legal(obs, legal, key):
    """An opponent that decides nothing by chance."""
    return legal.argmax()


def by_hand(game, opponent):
    """(reset, step) of a game, the others' moves taken one by one."""
    env = pgx.make(game)

    def answer(state, reward):
        def other(carry):
            return (carry[0].current_player != 0) & ~carry[0].terminated

        def move(carry):
            state, reward = carry
            action = opponent(state.observation, state.legal_action_mask, None)
            state = env.step(state, action, jax.random.key(0))
            return state, reward + state.rewards[0]

        return jax.lax.while_loop(other, move, (state, reward))

    def seen(state):
        if env.num_players == 1:
            return state.observation
        return env._observe(state, jnp.zeros_like(state.current_player))

    def reset(key):
        state, _ = answer(env.init(jax.random.split(key)[0]), jnp.zeros(()))
        return seen(state), state

    def step(key, state, action):
        state = env.step(state, action, jax.random.split(key)[0])
        state, reward = answer(state, state.rewards[0])
        return seen(state), state, reward, state.terminated

    return reset, step


@pytest.mark.parametrize(
    "name",
    ["tic_tac_toe", *[pytest.param(x, marks=pytest.mark.slow) for x in ("connect_four", "2048")]],
)
@pytest.mark.parametrize("legal", [True, False])
def test_steps_are_pgx_s_own(name, legal):
    env, params = envs_jax.make(f"pgx/{name}", opponent=first_legal)
    rewards, ends = check_against(env, params, *by_hand(name, first_legal), legal=legal)
    if name == "tic_tac_toe":
        assert ends > 2
        assert legal or rewards.min() == -1


def test_environment():
    check_environment(GAME)


def test_random_players_win_as_often_as_they_should():
    """Of games between random players the first wins 0.585, the second 0.288, none 0.127."""
    env, params = envs_jax.make(GAME)

    def play(key):
        key, reset_key = jax.random.split(key)
        _, state = env.reset_env(reset_key, params)

        def step(carry, key):
            state, result, over = carry
            move_key, key = jax.random.split(key)
            legal = env.action_mask(state, params)
            action = jax.random.categorical(move_key, jnp.where(legal, 0.0, -jnp.inf))
            _, state, reward, terminated, _ = env.step_env(key, state, action, params)
            return (state, jnp.where(over, result, reward), over | terminated), None

        begin = state, jnp.zeros(()), jnp.zeros((), bool)
        _, result, over = jax.lax.scan(step, begin, jax.random.split(key, 5))[0]
        return result, over

    games = 8000
    results, over = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), games))
    assert over.all()
    for result, share in ((1, 0.4364), (0, 0.1270), (-1, 0.4364)):
        error = np.sqrt(share * (1 - share) / games)
        assert abs((results == result).mean() - share) < 4 * error


def test_the_opponent_sees_its_own_side():
    seen = []

    def opponent(obs, legal, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), obs)
        return legal.argmax()

    env, params = envs_jax.make(GAME, opponent=opponent, masked=False)
    obs, state = env.reset(jax.random.key(3), params)
    while obs.any():  # until a game that the agent begins
        obs, state = env.reset(jax.random.key(len(seen) + 4), params)
    jax.effects_barrier()
    seen.clear()
    obs, *_ = env.step(jax.random.key(0), state, jnp.array(8), params)
    jax.effects_barrier()
    assert seen[0][2, 2].tolist() == [0, 1]  # the agent's stone is the other's, to the opponent
    assert obs[2, 2].tolist() == [1, 0]
    assert obs[0, 0].tolist() == [0, 1]


def test_opponent_by_name():
    env, _ = envs_jax.make(GAME, opponent="tests.envs_jax.test_pgx:first_legal")
    assert env._move.__name__ == "first_legal"
    with pytest.raises(ValueError, match="nobody") as error:
        envs_jax.make(GAME, opponent="tests.envs_jax.test_pgx:nobody")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["backgammon", "sparrow_mahjong", "go_9x9", "minatar-breakout"])
def test_other_games(name):
    check_environment(f"pgx/{name}")


@pytest.mark.slow
def test_trains():
    check_training(*envs_jax.make("pgx/connect_four"))
