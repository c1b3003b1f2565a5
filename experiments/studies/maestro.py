"""A router of experts beside the best one that there could be, and a registry with a new expert.

The oracle knows the domain of a task, asks the expert who is best there, and stops as it pays to.
Its return follows from the experts' accuracies, without sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from envs_jax.sequences.router import Router

COSTS = (0.0, 0.02, 0.1, 1.0)
DEFAULT = "cost 0.02"
SIZES: dict[str, Any] = {
    "num_prompts": 64,
    "group_size": 8,
    "width": 32,
    "learning_rate": 3e-3,
    "num_minibatches": 4,
}
ITERATIONS = 400
NEW_ACCURACY, NEW_DOMAIN = 0.99, 0  # of an expert who joins after training
NUMBER = 4096  # tasks of each measurement


class Maestro(study.Study):
    name = "maestro"
    title = "A router of experts"
    paper = (
        "Wu et al. 2026, Maestro: Reinforcement Learning to Orchestrate Hierarchical Model-Skill "
        "Ensembles."
    )
    question = (
        "Does a policy that learns from outcomes whom to ask, how often and when to stop come near "
        "the best router that there is, and does it use an expert whom it has never seen?"
    )
    budget = f"{len(COSTS)} cells of {ITERATIONS} iterations of 512 answers, 8 seeds: minutes"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        few = {"num_prompts": 4, "width": 8} if quick else {}
        return {
            f"cost {cost:g}": {
                "iterations": 4 if quick else ITERATIONS,
                "seeds": 2 if quick else 8,
                "cost": cost,
                "changes": SIZES | few,
            }
            for cost in COSTS
            if not quick or cost == 0.02
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax
        import jax.numpy as jnp

        import agents
        import envs_jax

        env, env_params = envs_jax.make("sequences/router")
        env_params = env_params.replace(cost=jnp.float32(settings["cost"]))
        agent = agents.get("maestro")(env, env_params, **settings["changes"])
        agent = agent.replace(total_steps=agent.steps_per_iteration * settings["iterations"])
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        ((_, run),) = population.batches  # one program

        # The same tasks without and with the new expert, who is on the list and away, or there.
        larger, with_new = with_expert(env, env_params)
        without = with_new.replace(present=with_new.present.at[-1].set(False))
        routers = {
            prefix: agent.replace(env=larger, env_params=x)
            for prefix, x in (("", without), ("new_", with_new))
        }

        def measured(params: Any, key: jax.Array) -> dict[str, jax.Array]:
            return {
                prefix + name: x
                for prefix, router in routers.items()
                for name, x in measures_of(router, params, key).items()
            }

        keys = jax.random.split(jax.random.key(1), settings["seeds"])
        measures = jax.jit(jax.vmap(measured))(run.state.params, keys)
        measures = jax.tree.map(np.asarray, measures)
        best, best_calls = oracle(env, env_params)
        seeds = settings["seeds"]
        measures |= {
            # Where a call costs too much the best return is 0.
            "share_of_oracle": measures["return"] / (best or np.nan),
            "gain_by_new": measures["new_return"] - measures["return"],
            "oracle_return": np.full(seeds, best),
            "oracle_calls": np.full(seeds, best_calls),
            "new_oracle_return": np.full(seeds, oracle(larger, with_new)[0]),
        }
        metrics = population.history.metrics
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curves": {
                name: metrics[name].mean(axis=0).round(4).tolist()
                for name in ("episode_return", "calls")
            },
        }

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        columns = [
            "return",
            "oracle_return",
            "calls",
            "oracle_calls",
            "accuracy",
            "new_return",
            "new_oracle_return",
            "new_called_at_home",
        ]
        rows = [
            [name, *(self.text(cell["measures"][column]) for column in columns)]
            for name, cell in cells.items()
        ]
        return [study.Table("", ["", *(column.replace("_", " ") for column in columns)], rows)]

    def claims(self) -> list[Claim]:
        def of(cell: str, measure: str) -> Any:
            return lambda cells: [Interval.of(cells[cell][measure])]

        return [
            Claim(
                "The return is at least 95 % of the oracle's (quotient)",
                of(DEFAULT, "share_of_oracle"),
                low=0.95,
            ),
            Claim(
                f"An expert who joins after training, right at {NEW_ACCURACY:g} in one domain, "
                "raises the return",
                of(DEFAULT, "gain_by_new"),
                low=0.0,
            ),
            Claim(
                "because it is called in that domain: share of the calls there",
                of(DEFAULT, "new_called_at_home"),
                low=0.5,
            ),
            Claim(
                "The dearer a call, the fewer there are: difference to the next lower cost",
                lambda cells: [
                    fewer(cells, f"cost {dear:g}", f"cost {cheap:g}")
                    for cheap, dear in itertools.pairwise(COSTS)
                ],
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"costs": draw(cells)}


STUDY = Maestro()


def fewer(cells: Mapping[str, Measures], dear: str, cheap: str) -> Interval:
    """How many more calls there are at one cost than at another."""
    return Interval.difference(cells[dear]["calls"], cells[cheap]["calls"])


# Routers ----------------------------------------------------------------------------------------


def with_expert(env: Router, params: Any) -> tuple[Router, Any]:
    """The environment with one expert more, who is better than all others in one domain."""
    import jax.numpy as jnp

    skill = jnp.full(env.domains, params.accuracy.min()).at[NEW_DOMAIN].set(NEW_ACCURACY)
    larger = type(env)(env.experts + 1, env.domains, env.choices, env.turns)
    return larger, params.replace(
        accuracy=jnp.vstack([params.accuracy, skill]),
        features=jnp.vstack([params.features, skill]),
        present=jnp.append(params.present, True),
    )


def measures_of(agent: Any, params: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Return, accuracy and calls of the greedy policy, and whom it calls in one domain.

    "called_at_home": the share of calls of the last expert, in the domain of the new one; 0 where
    nobody is called there.
    """
    tasks = agent.fresh_prompts(key, NUMBER)
    tokens = agent.sample(params, tasks, None)[0]
    verdict = agent.verify(tasks, tokens)
    is_call = tokens != agent.env.end_token
    is_home = (tasks.embedding.argmax(axis=-1) == NEW_DOMAIN)[:, None] & is_call
    last = is_home & (tokens == agent.env.experts - 1)
    return {
        "return": verdict.reward.mean(),
        "accuracy": verdict.correct.mean(),
        "calls": is_call.sum(axis=-1).mean(),
        "called_at_home": last.sum() / is_home.sum().clip(1),
    }


def oracle(env: Router, params: Any) -> tuple[float, float]:
    """Expected return and calls of the best expert of each domain, asked as often as it pays.

    Exact, by going back from the last turn over everything that the expert can have said.
    """
    best = np.asarray(params.accuracy, np.float64)[np.asarray(params.present)].max(axis=0)
    cost, last = float(params.cost), float(params.last)
    worth = [stopping(p, env.choices, env.turns, cost, last) for p in best]
    mean = np.mean(worth, axis=0)
    return float(mean[0]), float(mean[1])


def stopping(
    accuracy: float, choices: int, turns: int, cost: float, last: float = 0.0
) -> tuple[float, float]:
    """Expected return and calls where one expert is asked and asking stops when it pays no more.

    Args:
        accuracy: how often it is right; a wrong answer is any of the others, all alike.
        last: 1 where the last answer counts, 0 where the majority does (of two the later one).
    """

    def chances(said: tuple[int, ...]) -> np.ndarray:
        """Of each truth (choices,) together with what has been said."""
        right = np.asarray(said)[:, None] == np.arange(choices) if said else np.ones((0, choices))
        return np.where(right, accuracy, (1 - accuracy) / (choices - 1)).prod(axis=0) / choices

    def value(said: tuple[int, ...]) -> tuple[float, float]:
        """Return and further calls from here, each times the chance of getting here."""
        together = chances(said)
        stop = 0.0
        if said:
            votes = (1 - last) * np.bincount(said, minlength=choices).astype(float)
            votes[said[-1]] += 0.5
            stop = float(together[votes.argmax()])
        if len(said) == turns:
            return stop, 0.0
        after = [value((*said, answer)) for answer in range(choices)]
        here = float(together.sum())
        go_on = sum(x for x, _ in after) - cost * here
        if go_on <= stop:
            return stop, 0.0
        return go_on, here + sum(calls for _, calls in after)

    return value(())


def draw(cells: Mapping[str, Any]) -> Figure:
    """Return and calls by cost, a dot per seed, beside the oracle's; learning curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=130, layout="constrained")
    returns, calls, curves = figure.subplots(1, 3)
    costs = [cell["settings"]["cost"] for cell in cells.values()]
    for axes, name, label in ((returns, "return", "return"), (calls, "calls", "calls of a task")):
        for place, cell in enumerate(cells.values()):
            values = cell["measures"][name]
            axes.scatter(np.full(len(values), place), values, s=14, color="C0", linewidth=0)
        best = [cell["measures"][f"oracle_{name}"][0] for cell in cells.values()]
        axes.plot(range(len(costs)), best, "_", ms=18, color="C1", label="oracle")
        axes.set_xticks(range(len(costs)), [f"{cost:g}" for cost in costs])
        axes.set_xlabel("cost of a call")
        axes.set_ylabel(label)
    calls.legend(frameon=False, fontsize="small")
    for name, cell in cells.items():
        curves.plot(cell["curves"]["episode_return"], label=name, linewidth=1.2)
    curves.set_xlabel("iterations")
    curves.set_ylabel("return, sampled")
    curves.legend(frameon=False, fontsize="small")
    for axes in (returns, calls, curves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure
