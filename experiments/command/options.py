"""The grammar of the `jaxrl` command: its commands and their options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from experiments.command import parse

DESCRIPTION = "Train, sweep and evaluate reinforcement-learning agents in JAX."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"jaxrl: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def parser() -> Parser:
    """The command line's grammar."""
    top = Parser(prog="jaxrl", description=DESCRIPTION, allow_abbrev=False)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        command.set_defaults(command=name)
        return command

    def add_run_arguments(command: argparse.ArgumentParser, values: str) -> None:
        command.add_argument("agent", metavar="AGENT", nargs="?", help="see `jaxrl list agents`")
        command.add_argument("env", metavar="ENV", nargs="?", help="see `jaxrl list envs`")
        command.add_argument("settings", metavar="key=value", nargs="*", default=[], help=values)
        command.add_argument("--steps", type=positive, help="environment steps of each member")
        command.add_argument(
            "--resume",
            metavar="DIR",
            type=Path,
            help="go on with the run in DIR, with the settings it has; --steps may be more",
        )
        command.add_argument(
            "--checkpoint-every",
            metavar="SECONDS",
            type=natural,
            default=60,
            help="time from one checkpoint to the next (default: 60)",
        )
        command.add_argument(
            "--keep",
            type=positive,
            default=2,
            help="newest checkpoints to keep, besides the best (default: 2)",
        )
        command.add_argument(
            "--data-parallel",
            action="store_true",
            help="members one after the other, the environments of each spread over the devices",
        )
        command.add_argument(
            "--distributed",
            action="store_true",
            help="one of several processes that find each other: SLURM, Kubernetes, TPU pods",
        )
        command.add_argument(
            "--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens"
        )
        command.add_argument("--num-processes", type=positive, help="how many processes there are")
        command.add_argument("--process-id", type=natural, help="which of them this is, from 0")
        command.add_argument(
            "--memory",
            metavar="BYTES",
            type=nbytes,
            help="what a program may take on all devices, as in 8G (default: what they have)",
        )
        command.add_argument(
            "--tensorboard", action="store_true", help="event files into OUT/tensorboard as well"
        )
        command.add_argument(
            "--wandb",
            metavar="PROJECT",
            help="a run of Weights & Biases as well (offline with WANDB_MODE=offline)",
        )
        command.add_argument(
            "--log-member",
            metavar="I",
            type=natural,
            help="TensorBoard and Weights & Biases get this member (default: the mean)",
        )
        command.add_argument(
            "--on-nan",
            choices=("report", "stop"),
            default="report",
            help="where a member's loss or parameters are not finite: leave it out, or stop",
        )
        command.add_argument(
            "--data",
            metavar="FILE",
            help="learn from recorded steps: an HDF5 file in D4RL's layout, or minari:ID",
        )
        command.add_argument(
            "--evaluations",
            type=positive,
            help="times to evaluate during training (default: 0; with --data 20)",
        )
        command.add_argument("--out", type=Path, help="run folder (default: runs/AGENT-ENV-TIME)")
        command.add_argument(
            "--episodes", type=positive, help="final evaluation episodes per member (default: 64)"
        )

    train = add("train", "train one setting, with one seed or several")
    add_run_arguments(train, "a hyper-parameter, or env.NAME, as `jaxrl list AGENT` shows them")
    which = train.add_mutually_exclusive_group()
    which.add_argument("--seed", type=natural, help="the seed (default: 0)")
    which.add_argument("--seeds", type=natural, help="run this many seeds: 0, 1, ...")

    sweep = add("sweep", "train every setting of a grid, or of a random search")
    add_run_arguments(sweep, "key=v1,v2 or key=log:low:high:n or key=lin:low:high:n or key=value")
    sweep.add_argument("--seeds", type=natural, help="seeds of each setting (default: 1)")
    sweep.add_argument("--random", type=natural, help="draw this many settings from the ranges")

    collect = add("collect", "train an agent and record D4RL-style datasets")
    collect.add_argument("agent", metavar="AGENT", help="see `jaxrl list agents`")
    collect.add_argument("env", metavar="ENV", help="see `jaxrl list envs`")
    collect.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="a hyper-parameter of AGENT"
    )
    collect.add_argument("--steps", type=positive, help="environment steps of its training")
    collect.add_argument(
        "--size", type=positive, default=100_000, help="steps in each dataset (default: 100000)"
    )
    collect.add_argument("--seed", type=natural, default=0, help="the seed (default: 0)")
    collect.add_argument("--out", type=Path, help="folder (default: data/ENV)")

    evaluate = add("eval", "evaluate the trained agents of a run")
    evaluate.add_argument("run", metavar="DIR", type=Path)
    evaluate.add_argument("--member", type=int, help="only this member (default: all)")
    evaluate.add_argument("--episodes", type=positive, default=64, help="episodes per member")
    evaluate.add_argument("--seed", type=natural, default=0, help="of the episodes")
    evaluate.add_argument(
        "--stochastic", action="store_true", help="sample actions instead of taking the best"
    )

    watch = add("watch", "show the curves of a run that goes on, or has ended")
    watch.add_argument("run", metavar="DIR", type=Path)
    watch.add_argument(
        "--every", metavar="SECONDS", type=positive, default=5, help="between drawings (default: 5)"
    )

    plot = add("plot", "draw the learning curves of one or several runs")
    plot.add_argument("runs", metavar="DIR", type=Path, nargs="+")
    plot.add_argument("--out", type=Path, help="figure (default: DIR/curve.png, or curves.png)")

    reproduce = add("reproduce", "list the studies, or run some and write their results")
    reproduce.add_argument("names", metavar="STUDY | STUDY/CELL | AGENT/ENV", nargs="*")
    reproduce.add_argument("--all", dest="everything", action="store_true", help="all studies")
    reproduce.add_argument("--quick", action="store_true", help="seconds each, into runs/quick")
    reproduce.add_argument("--page", action="store_true", help="run nothing, draw what there is")
    reproduce.add_argument("--out", metavar="DIR", type=Path, help="a folder for their results")

    listing = add("list", "list what there is")
    listing.add_argument(
        "what", metavar="agents | envs | recipes | AGENT", nargs="?", default="agents"
    )
    return top


def natural(text: str) -> int:
    """A whole number from 0 up, also written 1e5."""
    try:
        value = parse.whole(text)
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 up")
    return value


def positive(text: str) -> int:
    """A whole number from 1 up, also written 1e5."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError("0 is too small, it must be at least 1")
    return natural(text)


def nbytes(text: str) -> int:
    """Bytes, as in 8G."""
    try:
        value = parse.size(text)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of bytes, such as 500M or 8G")
    return value
