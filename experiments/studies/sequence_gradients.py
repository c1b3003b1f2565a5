"""What baselines do to the gradient of a sequence policy, and POISE beside GRPO on sums.

Gradients are those of a table on sums of two digits below 4, whose answers can all be summed up, so
that the exact gradient is known. Every estimate is of 32 answers: 4 prompts with 8, for POISE 16
with 2. The policy is as good at one prompt and as bad at another as policies in training are, and
its first token makes it better or worse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures, gain

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from jaxrl.loops.sequence import Sequence, SequenceState

DIGITS = 4
GROUP = 8
GROUPS: dict[str, Any] = {"num_prompts": 4, "group_size": GROUP, "weigh": "sum"}
PAIRS: dict[str, Any] = {"num_prompts": 16, "group_size": 2, "weigh": "sum", "whiten": False}
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "no baseline": ("grpo", GROUPS | {"baseline": "none", "divide_by_std": False}),
    "RLOO": ("grpo", GROUPS | {"baseline": "others", "divide_by_std": False}),
    "GRPO without std": ("grpo", GROUPS | {"divide_by_std": False}),
    "GRPO": ("grpo", GROUPS),
    "POISE": ("poise", PAIRS),
    "POISE self": ("poise", PAIRS | {"baseline": "self", "targets": "self"}),
    "POISE self, cross targets": ("poise", PAIRS | {"baseline": "self"}),
}
SUMS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRPO": ("grpo", {"num_prompts": 32, "group_size": 8}),
    "POISE": ("poise", {"num_prompts": 128, "group_size": 2}),
}
LEARNING = {"pretraining_steps": 300}
ITERATIONS = 500
CHUNK = 100  # gradients at once


class SequenceGradients(study.Study):
    name = "sequence_gradients"
    title = "Gradients of sequence policies"
    paper = (
        "Choi et al. 2026 (POISE); Shao et al. 2024 (GRPO); Ahmadian et al. 2024 (RLOO); Liu et "
        "al. 2025 (Dr. GRPO)."
    )
    question = (
        "Which baselines leave the gradient of the expected reward unbiased, how much does it vary "
        "with each at equal answers, and does POISE learn sums as well as GRPO?"
    )
    budget = "7 estimators of 100,000 gradients, 2 runs of 128,000 answers, 8 seeds: minutes"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        seeds = 2 if quick else 8
        gradients = {"gradients": CHUNK if quick else 12_500, "seeds": seeds}
        cells: dict[str, dict[str, Any]] = {
            f"gradient/{name}": gradients | {"agent": agent, "changes": changes}
            for name, (agent, changes) in ESTIMATORS.items()
            if not quick or name in ("RLOO", "POISE")
        }
        for name, (agent, changes) in SUMS.items():
            few = {"num_prompts": 8, "width": 8, "pretraining_steps": 2}
            iterations = 12 if quick else ITERATIONS
            if not quick or name == "POISE":
                cells[f"sum/{name}"] = {
                    "iterations": iterations,
                    "seeds": seeds,
                    "agent": agent,
                    "changes": LEARNING | changes | (few if quick else {}),
                }
        return cells

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        return (learn if cell.startswith("sum/") else estimate)(settings)

    def claims(self) -> list[Claim]:
        def of(measure: str, *names: str) -> Any:
            return lambda cells: [Interval.of(cells[f"gradient/{x}"][measure]) for x in names]

        share = 1 - 1 / GROUP
        return [
            Claim(
                "RLOO and POISE (cross) have the exact gradient for their mean: its length along "
                "the exact one is 1 within 0.03",
                of("length", "RLOO", "POISE"),
                low=0.97,
                high=1.03,
            ),
            Claim(
                "and beside it there is less than 0.03 of that",
                of("beside", "RLOO", "POISE"),
                low=-0.03,
                high=0.03,
            ),
            Claim(
                f"GRPO without std has the exact direction and {share:g} of the length (quotient)",
                lambda cells: [
                    Interval.of(np.asarray(cells["gradient/GRPO without std"]["length"]) / share)
                ],
                low=0.97,
                high=1.03,
            ),
            Claim(
                "GRPO with std, and POISE that reads the answer itself, point elsewhere: more than "
                "0.05 of the exact length lies beside it",
                of("beside", "GRPO", "POISE self"),
                low=0.05,
            ),
            Claim(
                "At equal answers POISE's gradient varies less than that of RLOO; quotient",
                lambda cells: [quotient(cells, "POISE", "RLOO")],
                high=1.0,
            ),
            Claim(
                "On sums both reach 95 % of right answers, sampled",
                lambda cells: [Interval.of(cells[f"sum/{x}"]["final_accuracy"]) for x in SUMS],
                low=0.95,
            ),
            Claim(
                "POISE learns at least as fast as GRPO: mean accuracy over all of training",
                gain("sum/POISE", ["sum/GRPO"], "mean_accuracy"),
                low=-0.005,
            ),
            Claim(
                "Its probe explains more than half of what prompts explain of the rewards",
                lambda cells: [Interval.of(cells["sum/POISE"]["explained_share"])],
                low=0.5,
            ),
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        """One of each kind; the worst component is of all gradients of all seeds together."""
        of_gradients = {k: v for k, v in cells.items() if k.startswith("gradient/")}
        of_sums = {k: v for k, v in cells.items() if k.startswith("sum/")}
        tables = []
        if of_gradients:
            (table,) = super().tables(of_gradients)
            columns = [*table.columns, "worst component, standard errors"]
            rows = [
                [*row, f"{cell['worst']:.1f}"]
                for row, cell in zip(table.rows, of_gradients.values(), strict=True)
            ]
            tables.append(study.Table("The gradient, beside the exact one", columns, rows))
        if of_sums:
            (table,) = super().tables(of_sums)
            tables.append(study.Table("Sums of two digits", table.columns, table.rows))
        return tables

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"gradients": draw(cells)}


STUDY = SequenceGradients()


def quotient(cells: Mapping[str, Measures], name: str, other: str) -> Interval:
    """Of the variances of two estimators, over the other's mean."""
    mine, theirs = (np.asarray(cells[f"gradient/{x}"]["variance"]) for x in (name, other))
    return Interval.of(mine / theirs.mean())


# Gradients --------------------------------------------------------------------------------------


def estimate(settings: dict[str, Any]) -> dict[str, Any]:
    """Many gradients by one agent of one policy, beside the exact one."""
    import jax

    agent = made(settings["agent"], settings["changes"])
    state = uneven(agent, agent.init(jax.random.key(0)))
    exact = np.asarray(jax.jit(partial(exact_gradient, agent))(state.params), np.float64)
    keys = jax.random.split(jax.random.key(1), settings["seeds"])
    chunks = settings["gradients"] // CHUNK
    means, variances = (
        np.asarray(x, np.float64)
        for x in jax.jit(jax.vmap(partial(moments, agent, state, chunks)))(keys)
    )
    error = (variances.mean(axis=0) / (len(keys) * chunks * CHUNK)) ** 0.5
    moves = error > 1e-9
    measures = beside_exact(means, exact)
    measures["variance"] = variances.sum(axis=-1) / (exact @ exact)
    return {
        "measures": {name: np.round(x, 5).tolist() for name, x in measures.items()},
        "worst": round(float(np.abs((means.mean(0) - exact)[moves] / error[moves]).max()), 2),
    }


def made(name: str, changes: dict[str, Any]) -> Sequence:
    import agents
    import envs_jax

    env, env_params = envs_jax.make("sequences/sum", digits=DIGITS)
    agent: Sequence = agents.get(name)(env, env_params, network="tabular", **changes)
    return agent


def uneven(agent: Sequence, state: SequenceState) -> SequenceState:
    """A policy that answers prompts rightly from nearly never to nearly always.

    In which half of that range it is depends on the scratch token, too.
    """
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    rows = 0.5 * rng.normal(size=state.params["params"]["rows"].shape)
    first = DIGITS + DIGITS**2  # rows of one and of two tokens
    of_answers = rows[first:].reshape(DIGITS, DIGITS, DIGITS, DIGITS)
    easy = rng.permutation(np.linspace(-3, 3, DIGITS**2)).reshape(DIGITS, DIGITS)
    for a, b, scratch in itertools.product(range(DIGITS), repeat=3):
        helps = 1 if scratch % 2 else -1
        of_answers[a, b, scratch, (a + b) % DIGITS] += easy[a, b] + helps + math.log(DIGITS - 1)
    params = {"params": {"rows": jnp.asarray(rows, jnp.float32)}}
    return state._replace(params=params, reference=params)


def exact_gradient(agent: Sequence, params: Any) -> jax.Array:
    """Of the expected reward, over all prompts and all answers to them, (D,)."""
    import jax
    import jax.numpy as jnp

    tokens = np.asarray(list(itertools.product(range(DIGITS), repeat=4)), np.int32)
    prompts, answers = jnp.asarray(tokens[:, :2]), jnp.asarray(tokens[:, 2:])
    reward = agent.verify(prompts, answers).reward

    def expected(params: Any) -> jax.Array:
        log_prob = agent.distribution(params, prompts, answers).log_prob(answers).sum(-1)
        return (jnp.exp(log_prob) * reward).sum() / DIGITS**2

    return jax.grad(expected)(params)["params"]["rows"].ravel()


def moments(
    agent: Sequence, state: SequenceState, chunks: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance (D,) of gradients, after a probe, if there is one, has learnt."""
    import jax
    import jax.numpy as jnp

    def gradient(memory: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        keys = jax.random.split(key, 3)
        now = state._replace(memory=memory)
        answers = agent.answers(now, agent.fresh_prompts(keys[0]), keys[1])
        batch, memory, _ = agent.batch(now, answers, keys[2])
        grads = jax.grad(lambda params: agent.loss(params, batch, keys[2])[0])(state.params)
        return -grads["params"]["rows"].ravel(), memory

    learn_key, key = jax.random.split(key)
    memory = jax.lax.scan(
        lambda memory, key: (gradient(memory, key)[1], ()),
        state.memory,
        jax.random.split(learn_key, 16),
    )[0]

    def add(sums: Any, key: jax.Array) -> Any:
        rows = jax.vmap(lambda k: gradient(memory, k)[0])(jax.random.split(key, CHUNK))
        return jax.tree.map(jnp.add, sums, (rows.mean(0), (rows**2).mean(0))), ()

    zeros = jnp.zeros(state.params["params"]["rows"].size)
    sums = jax.lax.scan(add, (zeros, zeros), jax.random.split(key, chunks))[0]
    mean, square = (x / chunks for x in sums)
    return mean, square - mean**2


def beside_exact(means: np.ndarray, exact: np.ndarray) -> dict[str, np.ndarray]:
    """Mean gradients (seeds, D) beside the exact one (D,), as shares of its length.

    Returns "length" along it, and "beside": what is at right angles to it, in the direction in
    which the other seeds have it. So an unbiased estimator has 0 there, whatever its noise.
    """
    unit = exact / np.linalg.norm(exact)
    along = means @ unit
    across = means - along[:, None] * unit
    others = across.sum(axis=0) - across
    others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-30)
    size = np.linalg.norm(exact)
    return {"length": along / size, "beside": (across * others).sum(axis=1) / size}


# Sums -------------------------------------------------------------------------------------------


def learn(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one agent on sums from about half of the answers right."""
    import agents
    import envs_jax
    import jaxrl

    env, env_params = envs_jax.make("sequences/sum")
    agent = agents.get(settings["agent"])(env, env_params, **settings["changes"])
    agent = agent.replace(total_steps=agent.steps_per_iteration * settings["iterations"])
    metrics = jaxrl.sweep(agent, seeds=settings["seeds"]).whole().history.metrics
    accuracy = np.asarray(metrics["accuracy"], np.float64)  # (seeds, iterations)
    end = max(1, accuracy.shape[1] // 20)
    measures = {
        "first_accuracy": accuracy[:, 0],
        "mean_accuracy": accuracy.mean(axis=1),
        "final_accuracy": accuracy[:, -end:].mean(axis=1),
        "final_greedy_accuracy": metrics["greedy_accuracy"][:, -end:].mean(axis=1),
    }
    if "explainable_variance" in metrics:
        measures["explained_share"] = explained_share(metrics)
    places = np.linspace(0, accuracy.shape[1] - end, min(50, accuracy.shape[1])).astype(int)
    curve = np.stack([accuracy[:, p : p + end].mean(axis=1) for p in places], axis=1)
    return {
        "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
        "curve": {
            "answers": (places * agent.steps_per_iteration).tolist(),
            "accuracy": np.round(curve, 3).tolist(),
        },
    }


def explained_share(metrics: Mapping[str, Any]) -> np.ndarray:
    """What the probe explains of the rewards, as a share of what prompts explain, (seeds,).

    While there is something to explain: as long as less than 90 % of the answers are right, and
    without the first ten iterations.
    """
    counts = np.asarray(metrics["accuracy"]) < 0.9
    counts[:, :10] = False
    explained, explainable = (
        np.where(counts, np.nan_to_num(np.asarray(metrics[f"{name}_variance"], np.float64)), 0)
        for name in ("explained", "explainable")
    )
    return explained.sum(axis=1) / explainable.sum(axis=1)


def draw(cells: Mapping[str, Any]) -> Figure:
    """Bias and variance of each estimator, a dot per seed; learning curves of sums."""
    from matplotlib.figure import Figure

    from jaxrl.report.stats import mean_ci

    figure = Figure(figsize=(12, 3.6), dpi=130, layout="constrained")
    *panels, curves = figure.subplots(1, 3)
    gradients = {
        k.removeprefix("gradient/"): v for k, v in cells.items() if k.startswith("gradient/")
    }
    labels = {"beside": "beside the exact gradient", "variance": "variance"}
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        for place, cell in enumerate(gradients.values()):
            values = np.asarray(cell["measures"][measure])
            axes.scatter(values, np.full(len(values), place), s=14, alpha=0.5, linewidth=0)
        axes.set_yticks(range(len(gradients)), list(gradients))
        axes.invert_yaxis()
        axes.set_xlabel(
            f"{label}, in units of its {'square' if measure == 'variance' else 'length'}"
        )
    panels[0].axvline(0, color="0.6", linewidth=0.8)
    panels[1].set_xlim(left=0)
    panels[1].set_yticklabels([])
    for name in SUMS:
        if (cell := cells.get(f"sum/{name}")) is None:
            continue
        x = np.asarray(cell["curve"]["answers"]) / 1000
        mean, low, high = mean_ci(np.asarray(cell["curve"]["accuracy"], dtype=float))
        (line,) = curves.plot(x, mean, label=name, linewidth=1.6)
        curves.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    curves.set_xlabel("answers (thousands)")
    curves.set_ylabel("share of right answers, sampled")
    curves.legend(frameon=False, fontsize="small", loc="lower right")
    for axes in (*panels, curves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure
