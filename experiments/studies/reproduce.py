"""Run recipes with eight seeds and keep what they gave.

`python -m experiments.studies.reproduce [AGENT/ENV ...]` trains each recipe, or those named, by the command
line, keeps config.json, summary.json and curve.png under experiments/results/AGENT/ENV/, and writes
the table of all kept results, experiments/results/README.md. A run that lies in runs/reproduce/
already is not repeated.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from experiments.command import cli, report
from experiments.runs import recipes

RESULTS = Path(__file__).parent.parent / "results"
RUNS = Path("runs") / "reproduce"
KEPT = ("config.json", "summary.json", "curve.png")

HEADER = """# Results

Every number is the mean of fresh evaluation episodes of the final policies (its mode, or the greedy
action), 64 a seed; the interval is Student's t over seeds, 95 %. `python -m experiments.studies.reproduce
AGENT/ENV` repeats a row; each folder holds its configuration (with versions, device and commit),
its summary with the return of every seed, and its learning curve.

| recipe | steps | seeds | final return | 95 % interval | published | its source |
|---|---|---|---|---|---|---|
"""

FOOTER = """
Means meet their recipes' aims, but for the unshaped mountain car; the intervals of PPO's Pendulum,
inverted_pendulum and both Breakouts are wide, and single seeds fall short. Recipes were chosen on
seeds that are among the eight.

On the unshaped MountainCarContinuous-v0 a seed either finds the goal (about 94) or learns to stand
still (about 0): the mean says how many did.

![Policies on a bandit with two peaks](two-peaks.png)

[Two peaks](two-peaks.json) (`python -m experiments.studies.two_peaks`, 4 seeds, the first drawn; black: the
Boltzmann density of the reward): the mixture follows the density at every temperature (total
variation .03 to .04); the Gaussian stays across both peaks and the valley, or takes one when it is
coldest; the bridge keeps both at 0.3 and one below.

SAC beside Brax's own, with the same environments, budget and hyper-parameters, is in
[brax-sac](brax-sac) (`python -m experiments.studies.brax_sac`). On inverted_pendulum, 200,000 steps are too
few for either: 96.5 [75.3, 117.7] of 1,000 here, 103.9 [90.0, 117.9] with Brax's. On hopper,
100,000 steps: 379.4 [333.0, 425.9] here, 426.4 [324.1, 528.7] with Brax's, where one seed of eight
reached 721 and the others 352 to 428: no difference shown. The seconds in those files are not a
comparison of speed: other work ran beside them.

What offline agents make of recorded steps of different quality is in [offline](offline):
[CartPole-v1](offline/CartPole-v1.md) (`jaxrl collect dqn CartPole-v1 --out data/CartPole-v1`, then
`python -m experiments.studies.offline_table CartPole-v1 --data data/CartPole-v1 --steps 8000 --batch-size
128 --seeds 6 --evaluations 4 --episodes 32`). DQN without conservatism runs away on the narrow sets
(mean Q 431 and 721 where no return exceeds 100, discounted) and falls below the random policy; CQL
and IQL stay below 31 and at the data or above it on all four. Cloning the best tenth is better than
all of them here, AWAC uneven.

[Pendulum-v1](offline/Pendulum-v1.md) (`jaxrl collect sac Pendulum-v1 --out data/Pendulum-v1`, then
`python -m experiments.studies.offline_table Pendulum-v1 --data data/Pendulum-v1 --steps 8000 --batch-size
128 --seeds 6 --evaluations 4 --episodes 32 --reward-scale 0.03`). Cloning gives the data's own
return or less; TD3+BC, IQL and AWAC are above it, CQL level with it; SAC without conservatism falls
below the random policy on the two narrow sets, and is the best of all on the random one, whose
actions cover the box. Cloning the best tenth fails on the narrow sets: an episode's return follows
from where the pendulum starts. IQL and AWAC weigh by exp of an advantage in the rewards' units:
with reward_scale 1 they reached -4 and -26 on medium-expert (0.03 was the best of four on two seeds
of that set).

[brax/hopper](offline/brax-hopper.md) (`jaxrl collect ppo brax/hopper --out data/hopper`, then
`python -m experiments.studies.offline_table brax/hopper --data data/hopper --steps 8000 --batch-size 128
--seeds 6 --evaluations 2 --episodes 16 --reward-scale 0.1`). The expert, PPO after 3 million steps,
has learnt to stand upright to the end, and no torque at all does nearly as well: that is why
cloning the best tenth of random episodes scores 94. Cloning gives the data's own return; TD3+BC is
level with it and above on medium-replay, as are IQL and AWAC there. SAC without conservatism falls
below the random policy on the three narrow sets, where its mean Q is 110 to 149 and its own
episodes return 15 to 64, undiscounted. Not as published: IQL, AWAC and CQL do not beat cloning on
medium and medium-expert. 8,000 steps on batches of 128 are a hundredth of the published budget, and
CQL was not tuned.

[brax/halfcheetah](offline/brax-halfcheetah.md) (`jaxrl collect sac brax/halfcheetah --out
data/halfcheetah`, then `python -m experiments.studies.offline_table brax/halfcheetah --data
data/halfcheetah --steps 5000 --batch-size 128 --seeds 5 --evaluations 2 --episodes 8 --reward-scale
0.1`). On medium all that learn from the data, cloning too, are above its return, which has the
noise of the policy that made it; TD3+BC and CQL are highest, as published, though at five seeds
their intervals overlap with cloning's. On medium-replay CQL and cloning the best tenth are above
the data; TD3+BC's interval holds it, the rest are level with it. On medium-expert cloning the best
tenth is best. SAC without conservatism is below the random policy on medium and medium-expert; its
mean Q is 38 to 71, where CQL's is -4 to 18.

![ABS beside fixed rollout lengths](abs-lengths/Breakout-MinAtar.png)

[ABS on Breakout-MinAtar](abs-lengths/Breakout-MinAtar.json) (`python -m experiments.studies.abs_lengths`, 2
million steps, 4 seeds): the divergence falls within 0.4 million steps, and the length grows from 16
to 36. The adaptive length ends between the fixed 16 and the fixed 32: at this budget shorter is
better, and its smallest length is where it starts.
"""


def main(names: list[str]) -> int:
    """Run and keep the recipes called `names`, or all; the first exit status that is not 0."""
    known = {recipe.name: recipe for recipe in recipes.everything()}
    for name in names:
        if name not in known:
            cli.fail(f"no recipe {name!r}; there are {', '.join(known)}")
            return 2
    for name in names or known:
        recipe, run = known[name], RUNS / name
        if not (run / "summary.json").exists():
            arguments = ["train", recipe.agent, recipe.env, "--seeds", "8", "--out", str(run)]
            status = cli.main(arguments)
            if status:
                return status
        keep(run, RESULTS / name)
    write_table()
    return 0


def keep(run: Path, folder: Path) -> None:
    """Copy what is worth keeping of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        shutil.copy(run / file, folder / file)


def write_table() -> None:
    """The table of all kept results."""
    rows = []
    for recipe in recipes.everything():
        path = RESULTS / recipe.name / "summary.json"
        if not path.exists():
            continue
        summary = json.loads(path.read_text())
        low, high = summary["final_return_ci95"]
        published = "-" if recipe.published is None else f"{recipe.published:g}"
        cells = [
            f"[{recipe.name}]({recipe.name}/curve.png)",
            f"{summary['env_steps'] // len(summary['members']):,}",
            str(len(summary["members"])),
            report.number(summary["final_return_mean"]),
            report.interval_text([low, high]),
            published,
            recipe.source,
        ]
        rows.append("| " + " | ".join(cells) + " |\n")
    (RESULTS / "README.md").write_text(HEADER + "".join(rows) + FOOTER)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
