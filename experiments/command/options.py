"""The grammar of the `jaxrl` command: its commands and their options."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments.command import arguments

DESCRIPTION = "Train, sweep and evaluate reinforcement-learning agents in JAX."


class Once(argparse.Action):
    """Takes the value of an option, which may be given once: none is dropped without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if self.option_strings and self.dest in given:
            raise argparse.ArgumentError(self, "given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register("action", None, Once)  # what an option does that says nothing else

    def error(self, message: str) -> NoReturn:
        print(f"jaxrl: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command's arguments; `line` is all of them as they were written.

    Raises: ValueError for arguments that the command does not have; SystemExit as argparse does.
    """
    args, rest = parser().parse_known_args(words)
    # argparse leaves over key=value words that stand behind an option.
    misplaced = [word for word in rest if word.startswith("-") or not hasattr(args, "settings")]
    if misplaced:
        raise ValueError(f"unrecognized arguments: {' '.join(misplaced)}")
    if rest:
        args.settings += rest
    args.line = shlex.join(["jaxrl", *words])
    return args


def parser() -> Parser:
    """The command line's grammar."""
    top = Parser(prog="jaxrl", description=DESCRIPTION, allow_abbrev=False)
    version = importlib.metadata.version("jaxrl")
    top.add_argument("--version", action="version", version=f"jaxrl {version}")
    top.set_defaults(joined=False)  # of several processes that have found each other
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (add, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(command=name)
        add(command)
    return top


def add_train(command: argparse.ArgumentParser) -> None:
    add_experiment(command, "one of those that `jaxrl list AGENT` and `jaxrl list ENV` show")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=arguments.natural, help="the seed (default: 0)")
    seeds.add_argument("--seeds", type=arguments.natural, help="run this many seeds: 0, 1, ...")
    add_source(command)
    add_run(command)


def add_source(command: argparse.ArgumentParser) -> None:
    """A run whose setting is trained anew."""
    command.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        type=Path,
        help="in place of AGENT and ENV: those of the run in DIR, with its hyper-parameters, data, "
        "evaluations and --record, where no others are given; of a sweep with --best or --member",
    )
    add_member(command, "the only setting of DIR")


def add_sweep(command: argparse.ArgumentParser) -> None:
    add_experiment(command, "key=v1,v2 or key=log:low:high:n or key=lin:low:high:n or key=value")
    command.add_argument(
        "--seeds", type=arguments.natural, help="seeds of each setting (default: 1)"
    )
    command.add_argument(
        "--random", type=arguments.natural, help="draw this many settings from the ranges"
    )
    command.add_argument(
        "--search-seed", type=arguments.natural, help="of what is drawn (default: 0)"
    )
    add_search(command)
    add_run(command)


def add_experiment(command: argparse.ArgumentParser, settings: str) -> None:
    """What to train."""
    add = command.add_argument
    add("agent", metavar="AGENT", nargs="?", help="see `jaxrl list agents`")
    add("env", metavar="ENV", nargs="?", help="see `jaxrl list envs`")
    add("settings", metavar="key=value", nargs="*", default=[], help=settings)
    add(
        "--recipe",
        metavar="FILE",
        type=Path,
        help="values other than the agent's defaults, as `jaxrl recipe DIR` prints them",
    )
    add(
        "--steps",
        type=arguments.positive,
        help="of each member: of its environment, gradient steps on data, answers to prompts",
    )
    add(
        "--data",
        metavar="FILE",
        action="append",
        help="learn from recorded steps: an HDF5 file in D4RL's layout, or minari:ID; may be "
        "repeated, to learn from several",
    )
    add(
        "--data-steps",
        metavar="N",
        type=arguments.positive,
        help="learn from episodes drawn at random that hold about N recorded steps (default: all)",
    )
    add(
        "--reference",
        metavar="RANDOM,EXPERT",
        type=arguments.two_numbers,
        help="returns that scores lie between, as --reference=-20.3,3234.3 (default: the data's)",
    )
    add(
        "--evaluations",
        type=arguments.few,
        help="times to evaluate during training (default: 0; with --data 20)",
    )
    add("--episodes", type=arguments.few, help="final evaluation episodes per member (default: 64)")
    add(
        "--record",
        metavar="NAMES",
        type=arguments.names,
        help="what the environment reports besides rewards, to sum per episode: success,cost",
    )


def add_search(command: argparse.ArgumentParser) -> None:
    """How members are compared while they train."""
    method = command.add_mutually_exclusive_group()
    method.add_argument(
        "--halving",
        metavar="ETA",
        type=arguments.positive,
        help="train all settings briefly, go on with the best 1/ETA of them, and so on: 3",
    )
    method.add_argument(
        "--pbt",
        metavar="SHARE",
        type=arguments.share,
        help="population-based training: the worst SHARE of the members copy the best: 0.25",
    )
    command.add_argument(
        "--halving-from",
        metavar="STEPS",
        type=arguments.positive,
        help="of each member before the first selection, at least",
    )
    command.add_argument(
        "--pbt-every",
        metavar="STEPS",
        type=arguments.positive,
        help="of each member from one exchange to the next (default: a twentieth of the run)",
    )


def add_run(command: argparse.ArgumentParser) -> None:
    """How to train it, and where its results go."""
    add = command.add_argument
    add("--out", type=Path, help="run folder (default: runs/AGENT-ENV-TIME)")
    add(
        "--on-nan",
        choices=("report", "stop"),
        default="report",
        help="where a member's loss, returns or parameters are not finite: leave it out, or stop",
    )
    add(
        "--memory",
        metavar="BYTES",
        type=arguments.nbytes,
        help="what a program may take on all devices, as in 8G (default: what they have)",
    )
    add_saving(command)
    add_logging(command)
    add_devices(command)


def add_saving(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--resume",
        metavar="DIR",
        type=Path,
        help="go on with the run in DIR, with the settings it has; --steps may be more",
    )
    add(
        "--checkpoint-every",
        metavar="SECONDS",
        type=arguments.natural,
        default=60,
        help="time from one checkpoint to the next (default: 60)",
    )
    add(
        "--keep",
        type=arguments.positive,
        default=2,
        help="newest checkpoints to keep, besides the best (default: 2)",
    )
    add(
        "--keep-replay",
        action="store_true",
        help="on disk when the run has ended: to extend it by --steps exactly as if it had not",
    )


def add_logging(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--tensorboard", action="store_true", help="event files into OUT/tensorboard as well")
    add(
        "--wandb",
        metavar="PROJECT",
        help="a run of Weights & Biases for each member as well (offline with WANDB_MODE=offline)",
    )
    add(
        "--log-member",
        metavar="I",
        type=arguments.natural,
        help="TensorBoard and Weights & Biases get this member alone (default: the mean, and all)",
    )


def add_devices(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--data-parallel",
        action="store_true",
        help="members one after the other, the environments of each spread over the devices",
    )
    add(
        "--distributed",
        action="store_true",
        help="one of several processes that find each other: SLURM, Kubernetes, TPU pods",
    )
    add("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens")
    add("--num-processes", type=arguments.positive, help="how many processes there are")
    add("--process-id", type=arguments.natural, help="which of them this is, from 0")


def add_collect(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("agent", metavar="AGENT", help="see `jaxrl list agents`")
    add("env", metavar="ENV", help="see `jaxrl list envs`")
    add("settings", metavar="key=value", nargs="*", default=[], help="a hyper-parameter of AGENT")
    add("--steps", type=arguments.positive, help="environment steps of its training")
    add(
        "--size",
        type=arguments.positive,
        default=100_000,
        help="steps per dataset (default: 100000)",
    )
    add("--seed", type=arguments.natural, default=0, help="the seed (default: 0)")
    add("--out", type=Path, help="folder (default: data/ENV)")


def add_data(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("files", metavar="FILE", nargs="+", help="HDF5 in D4RL's layout, or minari:ID")
    add("--env", metavar="ENV", help="of which it is (default: as the file says)")
    add(
        "--gamma",
        type=arguments.discount,
        default=0.99,
        help="of the value of first states (default: 0.99)",
    )
    add(
        "--reference",
        metavar="RANDOM,EXPERT",
        type=arguments.two_numbers,
        help="returns between which scores are normalised (default: as the data says)",
    )


def add_eval(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run", metavar="DIR", type=Path)
    add_member(command, "all", several=True)
    add("--episodes", type=arguments.few, default=64, help="episodes per member (default: 64)")
    add("--seed", type=arguments.natural, default=0, help="of the episodes (default: 0)")
    add("--stochastic", action="store_true", help="sample actions instead of taking the best")
    add(
        "--data",
        metavar="FILE",
        action="append",
        help="no episodes: the policies' value from recorded data, by fitted Q evaluation; with "
        "--stochastic by importance sampling as well",
    )
    add("--gamma", type=arguments.discount, default=0.99, help="of that value (default: 0.99)")
    add(
        "--steps",
        type=arguments.positive,
        default=20_000,
        help="gradient steps for it (default: 20,000)",
    )
    add_checkpoint(command)


def add_export(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run", metavar="DIR", type=Path)
    add("out", metavar="OUT", type=Path, help="a new folder")
    add_member(command, "the only one")
    add_checkpoint(command)
    add("--episodes", type=arguments.few, default=64, help="to evaluate it by (default: 64)")
    add("--seed", type=arguments.natural, default=0, help="of the episodes (default: 0)")
    add(
        "--format",
        choices=("jaxrl", "jax"),
        default="jaxrl",
        help="jax: as StableHLO too, which runs without jaxrl (default: jaxrl)",
    )


def add_render(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run", metavar="DIR", type=Path)
    add("--out", type=Path, required=True, help="NAME.gif, NAME.png, or of Brax NAME.html")
    add_member(command, "all, side by side", several=True)
    add_checkpoint(command)
    add(
        "--steps",
        type=arguments.positive,
        default=10_000,
        help="of an episode at most (default: 10,000)",
    )
    add("--seed", type=arguments.natural, default=0, help="of the episodes (default: 0)")
    add("--stochastic", action="store_true", help="sample actions instead of taking the best")


def add_member(command: argparse.ArgumentParser, default: str, several: bool = False) -> None:
    """Which member of a run; `--member` may be repeated where it takes several."""
    which = command.add_mutually_exclusive_group()
    repeated = "; may be repeated, for several" if several else ""
    which.add_argument(
        "--member",
        metavar="I",
        type=int,
        action="append" if several else Once,
        help=f"this one{repeated} (default: {default})",
    )
    which.add_argument("--best", action="store_true", help="the best seed of the best setting")


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        metavar="newest | best | ITERATION",
        type=arguments.checkpoint,
        default="newest",
        help="one that is kept; best: by the mean return over members (default: newest)",
    )


def add_watch(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run", metavar="DIR", type=Path)
    add(
        "--every",
        metavar="SECONDS",
        type=arguments.positive,
        default=5,
        help="between drawings (default: 5)",
    )


def add_plot(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="DIR", type=Path, nargs="+")
    command.add_argument(
        "--out", type=Path, help="figure (default: DIR/curve.png, or curves.png; profile.png)"
    )
    command.add_argument(
        "--profile",
        action="store_true",
        help="performance profiles of final returns instead: by setting of one run, by agent of "
        "several runs over environments",
    )
    command.add_argument(
        "--reference",
        metavar="ENV=LOW,HIGH",
        type=arguments.env_reference,
        action="append",
        help="returns that scores of an environment are 0 and 1 at (default: the least and the "
        "highest of the runs)",
    )


def add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="DIR", type=Path, help="a run that has ended")


def add_reproduce(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("names", metavar="STUDY | STUDY/CELL | AGENT/ENV", nargs="*")
    add("--all", dest="everything", action="store_true", help="all studies")
    add("--quick", action="store_true", help="a small version of each, into runs/quick")
    add("--page", action="store_true", help="run nothing, draw what there is")
    add("--check", action="store_true", help="run nothing, say which kept results are outdated")
    add("--out", metavar="DIR", type=Path, help="a folder for their results")


def add_list(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "what", metavar="agents | envs | recipes | AGENT | ENV", nargs="?", default="agents"
    )


COMMANDS = {
    "train": (add_train, "train one setting, with one seed or several"),
    "sweep": (add_sweep, "train every setting of a grid, or of a random search"),
    "collect": (add_collect, "train an agent and record D4RL-style datasets"),
    "data": (add_data, "show what recorded data holds: episodes, returns, coverage"),
    "eval": (add_eval, "evaluate the trained agents of a run"),
    "export": (add_export, "write the policy of a trained agent into a folder of its own"),
    "render": (add_render, "draw an episode of the trained agents of a run"),
    "watch": (add_watch, "show the curves of a run during training or after it"),
    "plot": (add_plot, "draw the learning curves of one or several runs"),
    "recipe": (add_recipe, "print the best setting of a run, for `--recipe FILE`"),
    "reproduce": (add_reproduce, "list the studies, or run some and write their results"),
    "list": (add_list, "list agents, environments, recipes, or what one AGENT or ENV takes"),
}
