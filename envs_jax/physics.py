"""What brax and playground share: an adapter to gymnax's interface, and quiet imports."""

import contextlib
import copy
import io
import sys
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from envs_jax.wrappers import finite, strong


@struct.dataclass
class PhysicsParams:
    """Traced parameters of a physics environment."""

    max_steps_in_episode: jax.Array  # int32 scalar: episodes are truncated after this many steps
    gravity_scale: jax.Array  # float32 scalar: multiplies the model's own gravity (none in pusher)


@struct.dataclass
class PhysicsState:
    """The engine's own state, and the steps since the reset."""

    inner: Any
    time: jax.Array  # int32 scalar


class PhysicsEnv(Environment):
    """An environment with brax's `reset(key)` and `step(state, action)`, in gymnax's interface.

    The engine's `done` is termination; the time limit is ours. Actions lie in [-1, 1], which the
    environments scale to their actuators themselves. Subclasses say how gravity is replaced.
    """

    resets = "pool"
    pool_size = 16
    end_broken = True  # simulations diverge; see `wrappers.finite`

    def __init__(self, env: Any, name: str):
        self._env = env
        self._name = name

    def _with_gravity(self, scale: jax.Array) -> Any:
        """A shallow copy of the inner environment, its gravity multiplied by `scale`."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self._name

    @property
    def reports(self) -> tuple[str, ...]:
        """Entries of `info` that every agent sums over episodes, unasked."""
        return ("broken",) if self.end_broken else ()

    @property
    def default_params(self) -> PhysicsParams:
        return PhysicsParams(
            max_steps_in_episode=jnp.asarray(1000, jnp.int32),
            gravity_scale=jnp.asarray(1.0, jnp.float32),
        )

    @property
    def num_actions(self) -> int:
        """Size of the action vector, as gymnax counts continuous actions."""
        return self._env.action_size

    def step_env(
        self, key: jax.Array, state: PhysicsState, action: jax.Array, params: PhysicsParams
    ) -> tuple[jax.Array, PhysicsState, jax.Array, jax.Array, dict[str, Any]]:
        # brax and playground write into the dicts of the state passed to them: pass fresh ones, so
        # that a step outside jit leaves the caller's state alone.
        inner = jax.tree.map(lambda x: x, state.inner)
        inner = strong(self._with_gravity(params.gravity_scale).step(inner, action))
        obs, reward = jnp.asarray(inner.obs, jnp.float32), jnp.asarray(inner.reward, jnp.float32)
        terminated = jnp.asarray(inner.done, bool)
        info = dict(inner.metrics)  # parts of the reward, speeds and the like
        if self.end_broken:
            obs, reward, terminated, info = finite(obs, reward, terminated, info)
        return obs, PhysicsState(inner, strong(state.time + 1)), reward, terminated, info

    def reset_env(self, key: jax.Array, params: PhysicsParams) -> tuple[jax.Array, PhysicsState]:
        inner = strong(self._with_gravity(params.gravity_scale).reset(key))
        return jnp.asarray(inner.obs, jnp.float32), PhysicsState(inner, jnp.zeros((), jnp.int32))

    def action_space(self, params: PhysicsParams | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (self._env.action_size,), jnp.float32)

    def observation_space(self, params: PhysicsParams) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self._observation_shape, jnp.float32)

    @cached_property
    def _observation_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self._env.reset, jax.random.key(0)).obs.shape


def with_model(env: Any, attribute: str, model: Any) -> Any:
    """A shallow copy of the environment with its physics model replaced."""
    env = copy.copy(env)
    setattr(env, attribute, model)
    return env


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Imports and builds without four known messages; every other message is shown.

    They are: warp could not be imported (twice; nothing here uses it), brax is no longer
    maintained (it is pinned for that reason), a MuJoCo deprecation in brax's own model files.
    """
    previous = mujoco.get_mju_user_warning()

    def warn(message: str) -> None:
        if "'settotalmass' is deprecated" in message:
            return
        if previous is not None:
            previous(message)
        else:
            print(f"WARNING: {message}", file=sys.stderr)

    printed = io.StringIO()
    mujoco.set_mju_user_warning(warn)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Brax System, piplines and environments")
            yield
    finally:
        mujoco.set_mju_user_warning(previous)
        for line in printed.getvalue().splitlines(keepends=True):
            if not line.startswith(("Failed to import warp:", "Failed to import mujoco_warp:")):
                sys.stdout.write(line)
