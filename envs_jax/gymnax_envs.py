"""The gymnax suite: classic control, MinAtar, bsuite and others."""

from typing import Any

import gymnax
from gymnax.environments import spaces

from envs_jax.wrappers import Sticky, Typed, TypedStep, constructor_options, overrides_step


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: ours, and those of the environment's own constructor."""
    constructor = type(gymnax.make(name)[0])
    return {
        "resets": "fresh",
        "pool_size": 16,
        "end_broken": False,
        "sticky": 0.0,
    } | constructor_options(constructor)


def build(suite: str, name: str, sticky: float, **settings: Any) -> Typed:
    """The environment `name`. ValueError where `sticky` is not a probability or cannot apply."""
    if not 0.0 <= sticky <= 1.0:
        raise ValueError(f"{name}: sticky={sticky} is outside [0, 1]")
    env, params = gymnax.make(name, **settings)
    if sticky:
        if not isinstance(env.action_space(params), spaces.Discrete):
            raise ValueError(
                f"{name}: sticky={sticky} needs discrete actions, but these are continuous"
            )
        env = Sticky(env, sticky)
    return (TypedStep if overrides_step(env) else Typed)(env, name)
