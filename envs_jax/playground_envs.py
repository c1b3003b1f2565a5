"""MuJoCo Playground's dm_control suite, an optional extra."""

from typing import Any

import jax

from envs_jax.catalogue import unknown
from envs_jax.physics import PhysicsEnv, quiet, with_model

_IMPLS = ("jax", "warp")


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}. Playground's own default, warp, runs on NVIDIA only."""
    return {"resets": "pool", "pool_size": 16, "end_broken": True, "impl": _IMPLS[0]}


def build(suite: str, name: str, impl: str) -> "PlaygroundEnv":
    """The environment `name`. ValueError if the extra is not installed or `impl` is unknown."""
    if impl not in _IMPLS:
        raise ValueError(f"{suite}/{name}: {unknown('impl', impl, _IMPLS)}")
    with quiet():
        try:
            from mujoco_playground import dm_control_suite
        except ModuleNotFoundError as error:
            if error.name != "mujoco_playground":
                raise
            raise ValueError(
                f"{suite}/{name} needs an extra package: pip install -e '.[playground]'"
            ) from error
        env = dm_control_suite.load(name, config_overrides={"impl": impl})
    return PlaygroundEnv(env, f"{suite}/{name}")


class PlaygroundEnv(PhysicsEnv):
    """A playground environment in gymnax's interface."""

    def _with_gravity(self, scale: jax.Array) -> Any:
        model = self._env.mjx_model
        gravity = {"opt.gravity": model.opt.gravity * scale}
        return with_model(self._env, "_mjx_model", model.tree_replace(gravity))
