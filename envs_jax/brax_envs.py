"""The brax suite, on any of its four engines; `mjx/NAME` is `brax/NAME` on MJX."""

from typing import Any

import jax

from envs_jax.catalogue import unknown
from envs_jax.physics import PhysicsEnv, quiet, with_model
from envs_jax.wrappers import constructor_options

with quiet():
    import brax.envs

_BACKENDS = ("spring", "generalized", "positional", "mjx")


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: ours, and those of the environment's own constructor."""
    own = constructor_options(brax.envs._envs[name])
    del own["backend"]
    backend = {"backend": _BACKENDS[0]} if suite == "brax" else {}
    return {"resets": "pool", "pool_size": 16, "end_broken": True} | backend | own


def build(suite: str, name: str, backend: str = "mjx", **settings: Any) -> "BraxEnv":
    """The environment `name` on one of brax's engines. ValueError if the engine is unknown."""
    if backend not in _BACKENDS:
        raise ValueError(f"{suite}/{name}: {unknown('backend', backend, _BACKENDS)}")
    with quiet():
        env = brax.envs.get_environment(name, backend=backend, **settings)
    return BraxEnv(env, f"{suite}/{name}")


class BraxEnv(PhysicsEnv):
    """A brax environment in gymnax's interface."""

    def _with_gravity(self, scale: jax.Array) -> Any:
        sys = self._env.sys
        # brax's own engines read the first field, MJX the second.
        gravity = {"gravity": sys.gravity * scale, "opt.gravity": sys.opt.gravity * scale}
        return with_model(self._env, "sys", sys.tree_replace(gravity))
