"""One side of a row of the speed study, in a process of its own: compiled once, timed when told.

    python -m experiments.studies.speed_worker '{"side": "train", "agent": "ppo", ...}'

It answers each line on standard input with one of JSON: first, once it is compiled and warm, with
`compile_seconds`; a line "go" with the `seconds` of one run; the end of its input with `peak_mib`.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]  # all the training of a row, until its results are there


def main() -> None:
    job = json.loads(sys.argv[1])
    begin = time.perf_counter()
    if job["side"].endswith("one_device"):
        job["cores"] = 1
    if job["cores"] == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import jax

    if job["cores"] > 1:
        jax.config.update("jax_num_cpu_devices", job["cores"])
    run, compile_seconds = SIDES[job["side"]](job)
    run()
    say(compile_seconds=compile_seconds, start_seconds=time.perf_counter() - begin)
    for _ in sys.stdin:
        begin = time.perf_counter()
        run()
        say(seconds=time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say(peak_mib=peak / (2**20 if sys.platform == "darwin" else 2**10))


def say(**values: float) -> None:
    print(json.dumps(values), flush=True)


def agent_of(job: dict[str, Any]) -> Any:
    import agents
    import envs_jax

    env, env_params = envs_jax.make(job["env"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in job["values"].items()}
    cls: Any = agents.get(job["agent"])
    return cls(env, env_params, total_steps=job["steps"], **values)


def train(job: dict[str, Any]) -> tuple[Run, float]:
    """`jaxrl.train`, as users call it: in chunks, with the host between them."""
    import jaxrl

    agent = agent_of(job)
    first = jaxrl.train(agent)
    return lambda: jaxrl.train(agent), first.compile_seconds


def float32(job: dict[str, Any]) -> tuple[Run, float]:
    """`train`, whatever the row's precision, in float32."""
    return train(job | {"values": job["values"] | {"precision": "float32"}})


def fused(job: dict[str, Any]) -> tuple[Run, float]:
    """`jaxrl.fused`: the same run as one program."""
    import jax

    import jaxrl

    return compiled(jaxrl.fused, agent_of(job), jax.random.key(0))


def floor(job: dict[str, Any]) -> tuple[Run, float]:
    """Nothing but the matrix products of the run, of its gradient steps and of acting."""
    import jax

    from experiments.studies import products

    agent = agent_of(job)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    numbers = products.products(jax.make_jaxpr(agent.step)(state, jax.numpy.int32(0)).jaxpr)
    whole_run = {product: agent.num_iterations * n for product, n in numbers.items()}
    return compiled(products.alone(whole_run))


def sweep(job: dict[str, Any]) -> tuple[Run, float]:
    """`jaxrl.sweep` over learning rates and seeds, on as many devices as there are cores."""
    import jaxrl

    agent = agent_of(job)

    def run() -> Any:
        rates = jaxrl.Log(1e-4, 1e-2, job["rates"])
        return jaxrl.sweep(agent, {"learning_rate": rates}, seeds=job["seeds"])

    return run, run().compile_seconds


def rejax(job: dict[str, Any]) -> tuple[Run, float]:
    """The same run of rejax, without its evaluations."""
    import jax

    return compiled(peer(job).train, jax.random.PRNGKey(0))


def rejax_sweep(job: dict[str, Any]) -> tuple[Run, float]:
    """A population of rejax: vmapped over learning rates and seeds, as its manual shows."""
    import jax
    import jax.numpy as jnp

    algorithm = peer(job)
    rates = jnp.logspace(-4, -2, job["rates"])

    def of_rate(rate: Any, keys: Any) -> Any:
        return jax.vmap(algorithm.replace(learning_rate=rate).train)(keys)

    keys = jax.random.split(jax.random.PRNGKey(0), job["seeds"])
    return compiled(jax.vmap(of_rate, in_axes=(0, None)), rates, keys)


def brax(job: dict[str, Any]) -> tuple[Run, float]:
    """Brax's own PPO with the same sizes, without its evaluations.

    Its `train` compiles whenever it is called. So it is called once, for more runs than are asked
    for, and held after each.
    """
    begin = time.perf_counter()
    agent = agent_of(job)
    from brax import envs
    from brax.training.agents.ppo.train import train

    from experiments.studies.brax_sac import give_back_replicated

    give_back_replicated()
    env = envs.get_environment(job["env"].removeprefix("brax/"), backend="spring")
    start: queue.Queue[None] = queue.Queue()
    ends: queue.Queue[BaseException | None] = queue.Queue()

    def hold(*_: Any) -> None:
        ends.put(None)
        start.get()

    def train_on() -> None:
        try:
            train(env, progress_fn=hold, run_evals=False, **brax_arguments(agent))
        except BaseException as error:
            ends.put(error)

    def run() -> None:
        if error := ends.get():
            raise error

    threading.Thread(target=train_on, daemon=True).start()
    run()
    first = time.perf_counter() - begin

    def again() -> None:
        start.put(None)
        run()

    begin = time.perf_counter()
    again()
    return again, first - (time.perf_counter() - begin)


def brax_arguments(agent: Any) -> dict[str, Any]:
    """What Brax calls the sizes and hyper-parameters of our PPO. The rest stays its own."""
    import jax
    from brax.training.agents.ppo import networks

    sizes = tuple(agent.hidden_sizes)
    runs = 1_000
    return {
        "num_timesteps": runs * agent.total_steps,
        "num_evals": runs + 1,  # the first of which is before the first run
        "num_envs": agent.num_envs,
        "unroll_length": agent.num_steps,
        "batch_size": agent.num_envs // agent.num_minibatches,  # of unrolls
        "num_minibatches": agent.num_minibatches,
        "num_updates_per_batch": agent.num_epochs,
        "learning_rate": float(agent.learning_rate),
        "discounting": float(agent.gamma),
        "gae_lambda": float(agent.gae_lambda),
        "clipping_epsilon": float(agent.clip_range),
        "entropy_cost": float(agent.entropy_coef),
        "max_grad_norm": float(agent.max_grad_norm),
        "normalize_observations": agent.normalize_observations,
        "episode_length": int(agent.env_params.max_steps_in_episode),
        "network_factory": functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=sizes,
            value_hidden_layer_sizes=sizes,
            activation=jax.numpy.tanh,
        ),
    }


SIDES: dict[str, Callable[[dict[str, Any]], tuple[Run, float]]] = {
    "train": train,
    "float32": float32,
    "fused": fused,
    "floor": floor,
    "sweep": sweep,
    "sweep_one_device": sweep,
    "rejax": rejax,
    "rejax_sweep": rejax_sweep,
    "brax": brax,
}


def compiled(function: Any, *args: Any) -> tuple[Run, float]:
    import jax

    begin = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return lambda: jax.block_until_ready(program(*args)), time.perf_counter() - begin


def peer(job: dict[str, Any]) -> Any:
    """rejax's algorithm with the same sizes. What it cannot be told stays its own."""
    import gymnax
    import rejax

    ours = agent_of(job)
    sizes = tuple(ours.hidden_sizes)
    common = {
        "total_timesteps": job["steps"],
        "eval_freq": job["steps"],
        "skip_initial_evaluation": True,
        "num_envs": ours.num_envs,
        "learning_rate": float(ours.learning_rate),
        "gamma": float(ours.gamma),
    }
    if job["agent"] in ("ppo", "pqn"):
        for name in ("num_steps", "num_epochs", "num_minibatches"):
            common[name] = getattr(ours, name)
        common["max_grad_norm"] = float(ours.max_grad_norm)
    else:
        common |= {"buffer_size": ours.buffer_size, "fill_buffer": ours.learning_starts}
        common |= {"batch_size": ours.batch_size, "num_epochs": ours.num_updates}
    own: dict[str, dict[str, Any]] = {
        "ppo": {"agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": sizes}},
        "sac": {"agent_kwargs": {"activation": "relu"}, "hidden_layer_sizes": sizes},
        "dqn": {"agent_kwargs": {"activation": "relu"}},
        "pqn": {},
    }
    if job["agent"] in ("dqn", "pqn") and sizes != (64, 64):
        raise ValueError(f"rejax's {job['agent']} has two hidden layers of 64, not {sizes}")
    if job["env"].startswith("brax/"):
        from rejax.compat.brax2gymnax import create_brax

        env, env_params = create_brax(job["env"].removeprefix("brax/"), backend="spring")
        folded: Any = ResetByBrax(env)
    else:
        env, env_params = gymnax.make(job["env"])
        folded = Folded(env)
    cls = {"ppo": rejax.PPO, "sac": rejax.SAC, "dqn": rejax.DQN, "pqn": rejax.PQN}[job["agent"]]
    arguments = common | own[job["agent"]]
    algorithm = cls.create(env=folded, env_params=env_params, **arguments)
    return algorithm.replace(eval_callback=lambda *_: ())


class Folded:
    """A gymnax 1.0 environment as rejax knows them: terminated or truncated are one flag."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name == "env" or name.startswith("__"):  # while it is being copied
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


class ResetByBrax(Folded):
    """A brax environment, whose own wrapper goes back to the first state where an episode ends."""

    def step(self, key: Any, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        result: tuple[Any, ...] = self.env.step_env(key, state, action, params)
        return result


if __name__ == "__main__":
    main()
