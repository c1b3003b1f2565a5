"""Fine-tuning on one of two tasks: what is forgotten of the other, by whose states are learnt from.

A policy that has been pre-trained on running sums and running differences is trained on sums alone:
by mild and by stressful supervised fine-tuning, by distillation from what the latter makes of it,
at its own states and at the dataset's, and by RL.
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

    from agents.sequences.opd import OPD

PRETRAINING: dict[str, Any] = {"pretraining_steps": 2000, "pretraining_accuracy": 0.6}
SIZES: dict[str, Any] = {"num_prompts": 64, "group_size": 4, "width": 64}
DATASET = 64  # prompts, all of them sums
TEACHER: dict[str, Any] = {"teacher_steps": 400, "teacher_learning_rate": 1e-2}
STRESS = "stress SFT"
ARMS: dict[str, tuple[int, dict[str, Any]]] = {  # iterations, changes
    "mild SFT": (
        20,
        {"supervision": "demonstrations", "state_source": "dataset", "learning_rate": 1e-3},
    ),
    STRESS: (
        400,
        {"supervision": "demonstrations", "state_source": "dataset", "learning_rate": 1e-2},
    ),
    "OPD": (200, TEACHER | {"learning_rate": 1e-3}),
    "distillation at the dataset's states": (
        200,
        TEACHER | {"state_source": "dataset", "learning_rate": 1e-3},
    ),
    "RL": (200, {"supervision": "rewards", "learning_rate": 1e-3}),
}
TASKS = {"target": 1.0, "retention": 0.0}  # share of sums among the prompts
NUMBER = 512  # prompts of each measurement


class StateDistribution(study.Study):
    name = "state_distribution"
    title = "At whose states a policy is fine-tuned"
    paper = (
        "Post-Training is About States, Not Tokens: A State Distribution View of SFT, RL, and "
        "On-Policy Distillation, 2026; Agarwal et al. 2024 (on-policy distillation)."
    )
    question = (
        "Supervised on one task at the states of a dataset or at its own: how much does a policy "
        "gain there, what does it lose of another task, and is a student that is distilled at its "
        "own states better than a teacher that has forgotten?"
    )
    budget = f"{len(ARMS)} cells of 8 seeds, at most 400 iterations each: 13 minutes"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        small = {"num_prompts": 2, "width": 8, "pretraining_steps": 2} if quick else {}
        few = {"teacher_steps": 2}
        return {
            name: {
                "iterations": 2 if quick else iterations,
                "seeds": 2 if quick else 8,
                "changes": PRETRAINING
                | SIZES
                | {"dataset_size": DATASET}
                | changes
                | small
                | (few if quick and "teacher_steps" in changes else {}),
            }
            for name, (iterations, changes) in ARMS.items()
            if not quick or name == "OPD"
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax

        agent, iterations = made(settings["changes"]), settings["iterations"]
        by_task = {task: on(agent, share) for task, share in TASKS.items()}
        keys = jax.random.split(jax.random.key(0), settings["seeds"])
        run = jax.jit(jax.vmap(lambda key: trained(agent, by_task, iterations, key)))
        measured, curve = jax.tree.map(np.asarray, run(keys))
        measures = measured["policy"] | {
            f"teacher_{name}": x for name, x in measured.get("teacher", {}).items()
        }
        for task in TASKS:
            accuracy = f"{task}_accuracy"
            measures[f"base_{accuracy}"] = measured["base"][accuracy]
            measures[f"{task}_gain"] = measures[accuracy] - measured["base"][accuracy]
            if "teacher" in measured:
                lead = measures[accuracy] - measures[f"teacher_{accuracy}"]
                measures[f"{task}_lead"] = lead
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curve": curve.mean(axis=0).round(4).tolist(),
        }

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        columns = [
            "target_accuracy",
            "retention_accuracy",
            "target_gain",
            "retention_gain",
            "retention_kl",
            "drift",
            "teacher_target_accuracy",
            "teacher_retention_accuracy",
        ]
        rows = [
            [name, *(self.text(cell["measures"].get(column, [])) for column in columns)]
            for name, cell in cells.items()
        ]
        return [study.Table("", ["", *(column.replace("_", " ") for column in columns)], rows)]

    def claims(self) -> list[Claim]:
        def of(cell: str, *measures: str) -> Any:
            return lambda cells: [Interval.of(cells[cell][measure]) for measure in measures]

        return [
            Claim("Mild SFT raises accuracy on sums", of("mild SFT", "target_gain"), low=0.0),
            Claim(
                "and loses at most 0.05 of that on differences",
                of("mild SFT", "retention_gain"),
                low=-0.05,
            ),
            Claim(
                "Stressful SFT loses at least 0.3 on differences",
                of(STRESS, "retention_gain"),
                high=-0.3,
            ),
            Claim(
                "The student of OPD is better than its teacher on sums and on differences",
                of("OPD", "target_lead", "retention_lead"),
                low=0.0,
            ),
            Claim("RL raises accuracy on sums", of("RL", "target_gain"), low=0.0),
            Claim("and loses at most 0.05 on differences", of("RL", "retention_gain"), low=-0.05),
            Claim(
                "The states that a policy reaches have moved less with OPD than with stressful SFT "
                "(total variation)",
                lambda cells: [less(cells, "OPD", STRESS, "drift")],
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"arms": draw(cells)}


STUDY = StateDistribution()


def less(cells: Mapping[str, Measures], cell: str, other: str, measure: str) -> Interval:
    """How much more a cell has of a measure than another."""
    return Interval.difference(cells[cell][measure], cells[other][measure])


def made(changes: dict[str, Any]) -> OPD:
    import agents
    import envs_jax

    env, env_params = envs_jax.make("sequences/two_tasks")
    agent: OPD = agents.get("opd")(env, env_params, **changes)
    return agent


def on(agent: OPD, share: float) -> OPD:
    """The agent with this share of sums among its prompts."""
    import jax.numpy as jnp

    return agent.replace(env_params=agent.env_params.replace(target=jnp.float32(share)))


def trained(
    agent: OPD, by_task: Mapping[str, OPD], iterations: int, key: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """Pre-train on both tasks, learn sums; measures of all policies, accuracy (T,) in training."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, 4)
    base = agent.pretrained(agent.init_params(keys[0]), keys[1])
    learner = by_task["target"]
    state = learner.begun(keys[2], base)
    places = jnp.arange(iterations, dtype=jnp.int32)
    state, metrics = jax.lax.scan(learner.step, state, places)
    policies = {"base": base, "policy": state.params}
    if agent.supervision == "teacher":
        policies["teacher"] = state.memory.teacher
    measured = {
        name: measures_of(by_task, state._replace(params=params), keys[3])
        for name, params in policies.items()
    }
    return measured, metrics["accuracy"]


def measures_of(by_task: Mapping[str, OPD], state: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Accuracies on both tasks, KL of answers about differences from the base, drift on sums."""
    import jax

    keys = dict(
        zip(
            ("target", "retention", "kl", "answers", "drift"), jax.random.split(key, 5), strict=True
        )
    )
    measures = {
        f"{task}_accuracy": agent.evaluated(state, keys[task], NUMBER)["sampled_accuracy"]
        for task, agent in by_task.items()
    }
    agent = by_task["retention"]
    prompts = agent.fresh_prompts(keys["kl"], NUMBER)
    tokens = agent.sample(state.params, prompts, keys["answers"])[0]
    policy, base = (agent.distribution(x, prompts, tokens) for x in (state.params, state.reference))
    measures["retention_kl"] = policy.kl(base).sum(axis=-1).mean()
    agent = by_task["target"]
    prompts = agent.fresh_prompts(keys["drift"], NUMBER)
    measures["drift"] = drift(agent, state.params, state.reference, prompts)
    return measures


def drift(agent: OPD, params: Any, base: Any, prompts: jax.Array) -> jax.Array:
    """Total variation between what two policies have written before the last token, over prompts.

    By enumeration of all that can have been written.
    """
    import jax.numpy as jnp

    length = agent.env.answer_length - 1
    written = list(itertools.product(range(agent.vocabulary), repeat=length))
    tokens = jnp.asarray(written, jnp.int32)
    each = jnp.repeat(prompts, len(tokens), axis=0), jnp.tile(tokens, (len(prompts), 1))
    chances = [
        jnp.exp(agent.distribution(x, *each).log_prob(each[1]).sum(axis=-1)) for x in (params, base)
    ]
    return 0.5 * jnp.abs(chances[0] - chances[1]).sum() / len(prompts)


def draw(cells: Mapping[str, Any]) -> Figure:
    """Accuracy on both tasks and drift, a dot per seed; crosses are the teachers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=130, layout="constrained")
    tasks, drifts = figure.subplots(1, 2)
    for place, (name, cell) in enumerate(cells.items()):
        color, measures = f"C{place}", cell["measures"]
        x, y = (measures[f"{task}_accuracy"] for task in TASKS)
        tasks.scatter(x, y, s=16, color=color, alpha=0.6, linewidth=0, label=name)
        if "teacher_drift" in measures:
            x, y = (measures[f"teacher_{task}_accuracy"] for task in TASKS)
            tasks.scatter(x, y, s=16, color=color, marker="x", linewidth=0.8)
        values = measures["drift"]
        drifts.scatter(values, np.full(len(values), place), s=16, color=color, alpha=0.6)
    base = next(iter(cells.values()))["measures"]
    x, y = (base[f"base_{task}_accuracy"] for task in TASKS)
    tasks.scatter(x, y, s=16, color="0.5", label="base")
    tasks.scatter([], [], s=16, color="black", marker="x", linewidth=0.8, label="teachers")
    tasks.set_xlabel("share of right sums, sampled")
    tasks.set_ylabel("share of right differences, sampled")
    tasks.legend(frameon=False, fontsize="small")
    drifts.set_yticks(range(len(cells)), list(cells), fontsize="small")
    drifts.invert_yaxis()
    drifts.set_xlabel("total variation of states from the base's")
    for axes in (tasks, drifts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure
