"""navix/: NAVIX's own steps, with one-hot symbols."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from tests.envs_jax.suite_checks import check_against, check_environment, check_training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports', of what is deprecated
    navix = pytest.importorskip("navix")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

ROOM = "navix/Navix-Empty-Random-5x5-v0"
LAVA = "navix/Navix-LavaGapS5-v0"


def own_loop(name, observation):
    env = navix.make(name, observation_fn=getattr(navix.observations, observation))

    def encoded(timestep):
        objects, colours, states = jnp.moveaxis(timestep.observation, -1, 0)
        parts = jnp.eye(11)[objects], jnp.eye(6)[colours], jnp.eye(4)[states]
        return jnp.concatenate(parts, axis=-1)

    def reset(key):
        timestep = env.reset(key)
        return encoded(timestep), timestep

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        return encoded(timestep), timestep, timestep.reward, timestep.is_termination()

    return reset, step


@pytest.mark.parametrize(
    ("id", "observation"),
    [(ROOM, "symbolic"), (LAVA, "symbolic_first_person")],
)
def test_steps_are_navix_s_own(id, observation):
    env, params = check_environment(id, observation=observation)
    rewards, ends = check_against(env, params, *own_loop(id[6:], observation), num_steps=90)
    assert ends
    assert np.any(rewards) == (id == ROOM)  # falling into lava is worth 0


def test_environment():
    env, params = check_environment(ROOM)
    obs, _ = env.reset(jax.random.key(0), params)
    assert (obs.reshape(25, 21).sum(axis=1) == 3).all()  # an object, a colour and a state each


def test_every_symbol_has_its_place():
    for id in (
        "Navix-DoorKey-8x8-v0",
        "Navix-Dynamic-Obstacles-5x5-v0",
        "Navix-KeyCorridorS3R2-v0",
    ):
        for observation in ("symbolic", "symbolic_first_person"):
            env, params = envs_jax.make(f"navix/{id}", observation=observation)
            obs, _ = jax.jit(env.reset)(jax.random.key(0), params)
            without = obs.sum(axis=-1) != 3
            # The locked door of KeyCorridor has a state, 254, that means nothing: here it has none.
            assert without.sum() == ("KeyCorridor" in id)
            assert (obs[without][:, 4] == 1).all()


def test_unknown_observation():
    with pytest.raises(ValueError, match="did you mean symbolic"):
        envs_jax.make(ROOM, observation="symbolik")


def test_trains():
    check_training(*envs_jax.make(ROOM))
