"""Active importance sampling: how much less a gradient varies, and whether learning is faster.

The bandit has one action, of a normal policy of mean 0 and deviation 0.5, and three rewards. Its
active policy is fitted to samples of the policy, and estimates are of samples of the mixture. In
`raw` the reward itself stands for the advantage.

Learning is that of AISAC beside the same actor-critic that samples its own policy alone
(`defensive=1`), A2C and PPO. Policies are compared by their modes, which no sampling disturbs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STD = 0.5
REWARDS = {
    "quadratic": lambda a: -((a - 1.2) ** 2),
    "linear": lambda a: a,
    "peaked": lambda a: np.exp(-0.5 * ((a - 0.85) / 0.4) ** 2),
}
SHARES = (0.0, 0.1)  # of the policy in the mixture
# Variance beside that of the policy's own samples, for each of SHARES.
EXPECTED = {"quadratic": (0.175, 0.187), "linear": (0.223, 0.238), "peaked": (0.427, 0.449)}
TOLERANCE = 0.05  # relative: the source says neither the bandit's constants nor its errors
GRID = np.linspace(-4, 4, 4001)

CHEETAH = "brax/halfcheetah"
ENVS = {"Pendulum-v1": 400_000, "brax/inverted_pendulum": 400_000, CHEETAH: 200_000}  # steps
# Those of PPO's recipes; the cheetah has none, and gets the inverted pendulum's (see `words_of`).
GAMMA = {"Pendulum-v1": 0.9, "brax/inverted_pendulum": 0.995, CHEETAH: 0.99}
SHARED = ["entropy_coef=0", "normalize_observations=true", "normalize_rewards=true"]
ACTOR_CRITIC = ["num_envs=8", "num_steps=8", "gae_lambda=0.95", "learning_rate=3e-3", *SHARED]
AISAC = ["optimizer=rmsprop", "critic_learning_rate=3e-3", "critic_updates=1"]  # as A2C has it
AGENTS = {
    "aisac": ["aisac", *ACTOR_CRITIC, *AISAC],
    "own samples": ["aisac", *ACTOR_CRITIC, *AISAC, "defensive=1"],
    "a2c": ["a2c", *ACTOR_CRITIC],
    "ppo": ["ppo"],  # by its recipes
}
LABELS = {"aisac": "AISAC", "own samples": "AISAC, own samples", "a2c": "A2C", "ppo": "PPO"}
CHEETAH_PPO = ["num_envs=64", "num_steps=32", "learning_rate=3e-4", "value_clip_range=inf", *SHARED]
QUICK = {("Pendulum-v1", "aisac"), ("Pendulum-v1", "a2c")}
EVALUATIONS, EPISODES = 20, 16
FEW = 5, 4  # of the cheetah, whose episodes all last 1,000 steps


class ActiveSampling(study.Study):
    name = "active_sampling"
    title = "Active importance sampling"
    paper = (
        "Molaei, Paczolay, Papini, Metelli & Restelli 2026 (AISAC); Papini, Manganini, Metelli & "
        "Restelli 2024 (behavioural policy optimisation)."
    )
    question = (
        "How much less does a policy gradient vary where actions are sampled for it, and does an "
        "actor-critic learn faster by that?"
    )
    budget = (
        "8 cells of a bandit, 8 of 400,000 steps and 4 of 200,000, 8 seeds: half an hour on two "
        "cores"
    )
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        seeds = 2 if quick else 8
        bandit = {"samples": 20_000 if quick else 1_000_000, "seeds": seeds}
        names = [f"bandit/{name}" for name in (*EXPECTED, "raw peaked")]
        cells: dict[str, dict[str, Any]] = {
            f"{name}/{share:g}": bandit for name in names for share in SHARES
        }
        if quick:
            cells = {k: cell for k, cell in cells.items() if k.startswith("bandit/linear/")}
        for env, steps in ENVS.items():
            for agent in AGENTS:
                if not quick or (env, agent) in QUICK:
                    cells[f"{env}/{agent}"] = {
                        "steps": 2_000 if quick else steps,
                        "seeds": seeds,
                        "words": words_of(env, agent),
                    }
        return cells

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        what, name = cell.rsplit("/", 1)
        if what in ENVS:
            return learn(what, name, settings)
        *is_raw, reward = what.removeprefix("bandit/").split()
        seeds = range(settings["seeds"])
        rows = [
            estimate(reward, float(name), settings["samples"], seed, bool(is_raw)) for seed in seeds
        ]
        return {"measures": {key: [round(row[key], 5) for row in rows] for key in rows[0]}}

    def claims(self) -> list[Claim]:
        def beside_expected(share: float) -> Any:
            place = SHARES.index(share)
            return lambda cells: [
                Interval.of(np.asarray(cells[f"bandit/{name}/{share:g}"]["variance_ratio"]) / x)
                for name, x in ((name, both[place]) for name, both in EXPECTED.items())
            ]

        def each(measure: str, names: Any, *shares: float) -> Any:
            return lambda cells: [
                Interval.of(cells[f"bandit/{name}/{share:g}"][measure])
                for name in names
                for share in shares
            ]

        def variance(env: str) -> Any:
            return lambda cells: [Interval.of(cells[f"{env}/aisac"]["variance_ratio"])]

        bandits = [
            Claim(
                f"With a share of {share:g} of the policy variance is {', '.join(numbers)} of that "
                f"of its own samples ({', '.join(EXPECTED)}); quotients, within {TOLERANCE:.0%}",
                beside_expected(share),
                low=1 - TOLERANCE,
                high=1 + TOLERANCE,
            )
            for share, numbers in (
                (share, [str(both[SHARES.index(share)]) for both in EXPECTED.values()])
                for share in SHARES
            )
        ]
        bandits += [
            Claim(
                "The estimate has no bias: off by less than 0.011",
                each("bias", EXPECTED, *SHARES),
                high=0.011,
            ),
            Claim(
                "A share of 0.1 keeps ratios below 10",
                each("largest_ratio", [*EXPECTED, "raw peaked"], 0.1),
                high=10.001,
            ),
            Claim(
                "It is needed: a peaked reward without a baseline has ratios above 100 without it",
                each("largest_ratio", ["raw peaked"], 0.0),
                low=100.0,
            ),
            *(
                Claim(
                    f"{env}: while AISAC learns, its gradient varies less than that of its own "
                    "samples",
                    variance(env),
                    high=1.0,
                )
                for env in ENVS
            ),
        ]
        others = {"own samples": "itself with its own samples", "a2c": "A2C", "ppo": "PPO"}
        return bandits + [
            Claim(
                f"{env}: AISAC's mean return over training is above that of {text}; difference",
                gain(f"{env}/aisac", [f"{env}/{name}"], "mean_return"),
                low=0.0,
            )
            for env in ENVS
            for name, text in others.items()
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        bandit = {k: cell for k, cell in cells.items() if k.startswith("bandit/")}
        learning = {k: cell for k, cell in cells.items() if k not in bandit}
        parts = {"Variance on a bandit": bandit, "Learning": learning}
        return [
            study.Table(title, *super(ActiveSampling, self).tables(of)[0][1:])
            for title, of in parts.items()
            if of
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        learning = {k: cell for k, cell in cells.items() if "curve" in cell}
        drawn = {"densities": draw_densities()}
        return drawn | ({"learning": draw_learning(learning)} if learning else {})


STUDY = ActiveSampling()


# The bandit -------------------------------------------------------------------------------------


def on_grid(reward: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The policy's density, advantages and scores by mean and log-deviation, at GRID."""
    z = GRID / STD
    density = np.exp(-0.5 * z**2) / STD / (2 * np.pi) ** 0.5
    values = np.asarray(REWARDS[reward](GRID))
    advantages = values - np.trapezoid(density * values, GRID)
    return density, advantages, np.stack([z / STD, z**2 - 1], axis=-1)


def estimate(reward: str, share: float, samples: int, seed: int, raw: bool) -> dict[str, float]:
    """What samples of the mixture make of the gradient, beside as many of the policy.

    Args:
        share: of the policy in the mixture.
        raw: weigh by the reward itself, not by its advantage.
    """
    import jax
    import jax.numpy as jnp

    from jaxrl.parts.active_sampling import DefensiveMixture, moved, score, weighted_moments
    from jaxrl.parts.distributions import Normal

    policy = Normal(jnp.zeros(1), jnp.log(jnp.full(1, STD)))
    density, advantages, scores = on_grid(reward)
    mean = np.trapezoid((density * advantages)[:, None] * scores, GRID, axis=0)
    baseline = 0.0 if raw else np.trapezoid(density * REWARDS[reward](GRID), GRID)

    def gradients(action: jax.Array) -> np.ndarray:
        advantage = np.asarray(REWARDS[reward](np.asarray(action))) - baseline  # (samples, 1)
        return advantage * np.asarray(score(policy, action))

    own_key, choice_key, key = jax.random.split(jax.random.key(seed), 3)
    own = policy.sample_by(Normal.noise(own_key, (samples, 1)))
    of_own = gradients(own)
    residual = weighted_moments(policy, own, jnp.linalg.norm(of_own, axis=-1))
    mixture = DefensiveMixture(policy, moved(policy, residual), share)
    choice = jax.random.uniform(choice_key, (samples,), jnp.float32)
    action = mixture.sample_by((choice, Normal.noise(key, (samples, 1))))
    ratio = np.asarray(jnp.exp(policy.log_prob(action) - mixture.log_prob(action)))
    weighted = ratio[:, None] * gradients(action)
    return {
        "variance_ratio": float(weighted.var(axis=0).sum() / of_own.var(axis=0).sum()),
        "bias": float(np.linalg.norm(weighted.mean(axis=0, dtype=np.float64) - mean)),
        "largest_ratio": float(ratio.max()),
        "deviation_beside_policy": float(np.exp(residual[1])),
    }


# Learning ---------------------------------------------------------------------------------------


def words_of(env: str, name: str) -> list[str]:
    """The agent and its hyper-parameters, as on the command line."""
    if (env, name) == (CHEETAH, "ppo"):
        return [*AGENTS[name], *CHEETAH_PPO, f"gamma={GAMMA[env]}"]
    return [*AGENTS[name], f"gamma={GAMMA[env]}"] if AGENTS[name][1:] else AGENTS[name]


def learn(env: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of an agent's mode during training and at its end, a value for each seed."""
    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    from experiments.command.assemble import Request, assemble
    from jaxrl.training.meter import Meter

    steps, seeds = settings["steps"], settings["seeds"]
    agent_name, *words = settings["words"]
    agent = assemble(Request(agent_name, env, words, steps=steps)).agent
    evaluations, episodes = FEW if env == CHEETAH else (EVALUATIONS, EPISODES)
    with Meter(steps * seeds) as meter:
        population = jaxrl.sweep(
            agent, seeds=seeds, evaluations=evaluations, episodes=episodes, callbacks=[meter]
        ).whole()
    history = population.history
    returns = history.evaluations["returns"].mean(axis=-1)  # (seeds, evaluations)
    measures = {
        "final_return": population.evaluate().returns.mean(axis=1).tolist(),
        "mean_return": returns.mean(axis=1).tolist(),
    }
    if name == "aisac":
        measures["variance_ratio"] = np.nanmean(history.metrics["variance_ratio"], axis=1).tolist()
    return {
        "measures": {k: [round(x, 3) for x in values] for k, values in measures.items()},
        "curve": {
            "steps": history.evaluations["env_steps"][0].tolist(),
            "returns": np.round(returns, 2).tolist(),
        },
    }


# Figures ----------------------------------------------------------------------------------------


def draw_densities() -> Figure:
    """A panel for each reward: the policy, the density with the least variance, its normal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(EXPECTED), 2.6), dpi=130, layout="constrained")
    for axes, reward in zip(figure.subplots(1, len(EXPECTED)), EXPECTED, strict=True):
        density, advantages, scores = on_grid(reward)
        best = density * np.abs(advantages) * np.linalg.norm(scores, axis=-1)
        best /= np.trapezoid(best, GRID)
        mean = np.trapezoid(best * GRID, GRID)
        std = np.trapezoid(best * (GRID - mean) ** 2, GRID) ** 0.5
        fitted = np.exp(-0.5 * ((GRID - mean) / std) ** 2) / std / (2 * np.pi) ** 0.5
        axes.plot(GRID, density, color="0.5", label="policy")
        axes.fill_between(GRID, best, color="C0", alpha=0.3, linewidth=0, label="least variance")
        axes.plot(GRID, fitted, color="C0", label="active policy")
        axes.set(title=reward, xlabel="action", xlim=(-2.5, 2.5), ylim=(0, None), yticks=[])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("density")
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_learning(cells: Mapping[str, Any]) -> Figure:
    """A panel for each environment, a line for each agent: mean over seeds and its interval."""
    from matplotlib.figure import Figure

    from jaxrl.report.plots import steps_formatter
    from jaxrl.report.stats import mean_ci

    envs = list(dict.fromkeys(cell.rsplit("/", 1)[0] for cell in cells))
    figure = Figure(figsize=(4.5 * len(envs), 3.4), dpi=130, layout="constrained")
    for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
        for number, (name, label) in enumerate(LABELS.items()):
            if f"{env}/{name}" not in cells:
                continue
            curve = cells[f"{env}/{name}"]["curve"]
            mean, low, high = mean_ci(np.asarray(curve["returns"], dtype=float))
            axes.plot(curve["steps"], mean, color=f"C{number}", label=label, linewidth=1.6)
            axes.fill_between(
                curve["steps"], low, high, color=f"C{number}", alpha=0.15, linewidth=0
            )
        axes.set(title=env, xlabel="environment steps")
        axes.xaxis.set_major_formatter(steps_formatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.axes[0].set_ylabel("return of the mode")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
