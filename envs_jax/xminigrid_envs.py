"""XLand-MiniGrid (Nikulin et al. 2023, arXiv:2312.12044), an optional extra."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import jax

from envs_jax.suites import OPTIONS, SuiteEnv, imported, one_hot


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}; XLand's rules come from a benchmark: its name, or a file of one."""
    return OPTIONS | ({"benchmark": "trivial-21k"} if name.startswith("XLand") else {})


def build(suite: str, name: str, benchmark: str | None = None) -> XMiniGridEnv:
    """The environment `name`. ValueError if the extra or the benchmark is not there."""
    xminigrid = imported("xminigrid", suite, name)
    env, theirs = xminigrid.make(name)
    rules = None if benchmark is None else _rules(xminigrid, benchmark, f"{suite}/{name}")
    return XMiniGridEnv(env, f"{suite}/{name}", theirs, benchmark, rules)


def _rules(xminigrid: Any, benchmark: str, id: str) -> Any:
    """Rulesets, from a file or by a name that xminigrid knows, which it downloads once."""
    if Path(benchmark).is_file():
        return xminigrid.benchmarks.load_benchmark_from_path(benchmark)
    known = xminigrid.registered_benchmarks()
    if benchmark not in known:
        raise ValueError(f"{id}: benchmark={benchmark!r} is no file, nor one of {', '.join(known)}")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return xminigrid.load_benchmark(benchmark)
    except OSError as error:
        raise ValueError(
            f"{id}: benchmark {benchmark} cannot be downloaded ({error}); it is looked for in the "
            "folder that XLAND_MINIGRID_DATA names"
        ) from None


class XMiniGridEnv(SuiteEnv):
    """A grid world; the agent sees what lies before it, as one-hot tiles and colours (V, V, 25).

    The reward of the goal falls with the share of the time limit that was needed.

    Args:
        benchmark, rules: of XLand, a benchmark and what it holds: every reset draws a ruleset.
    """

    def __init__(self, env: Any, name: str, theirs: Any, benchmark: str | None, rules: Any):
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES

        super().__init__(env, name)
        self._theirs = theirs
        self._benchmark, self._rules = benchmark, rules
        self._symbols = (NUM_TILES, NUM_COLORS)

    @property
    def time_limit(self) -> int:
        return self._theirs.max_steps

    @property
    def num_actions(self) -> int:
        return self._env.num_actions(self._theirs)

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        own = self._own(params)
        if self._rules is not None:
            rules_key, key = jax.random.split(key)
            own = own.replace(ruleset=self._rules.sample_ruleset(rules_key))
        timestep = self._env.reset(own, key)
        return one_hot(timestep.observation, self._symbols), timestep

    def play(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        timestep = self._env.step(self._own(params), state, action)
        obs = one_hot(timestep.observation, self._symbols)
        return obs, timestep, timestep.reward, timestep.discount == 0, {}

    def _own(self, params: Any) -> Any:
        return self._theirs.replace(max_steps=params.max_steps_in_episode)
