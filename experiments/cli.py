"""The `jaxrl` command: train, sweep, collect, eval, watch, plot, list.

Only the command that is asked for imports what it needs, so that `--help` and the listings answer
at once. Bad input ends with one line on standard error and exit status 2, nothing compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from experiments import parse

if TYPE_CHECKING:
    from jaxrl.sinks import Sinks

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
ALONE = 3  # where another process of the run is gone
DIVERGED = 1  # where --on-nan stop ended the run


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(message)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for bad input, 130 for Ctrl-C, DIVERGED."""
    words = list(sys.argv[1:] if argv is None else argv)
    args, extra = parser().parse_known_args(words)
    misplaced = [word for word in extra if word.startswith("-") or not hasattr(args, "settings")]
    if misplaced:
        fail(f"unrecognized arguments: {' '.join(misplaced)}")
        return 2
    if extra:  # argparse leaves over what stands behind an option
        args.settings += extra
    args.line = shlex.join(["jaxrl", *words])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module="jaxrl|experiments")
            warnings.showwarning = warn  # type: ignore[assignment]
            return args.command(args)
    except ValueError as error:
        fail(str(error))
        status = 2
    except KeyboardInterrupt:
        fail("interrupted")
        status = INTERRUPTED
    except ConnectionError as error:
        fail(str(error))
        status = ALONE
    except Exception:
        if not getattr(args, "joined", False):
            raise
        traceback.print_exc()
        status = 1
    if getattr(args, "joined", False):  # to leave in order would wait for the other processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def fail(message: str) -> None:
    print(f"jaxrl: error: {' '.join(message.split())}", file=sys.stderr)


def warn(message: Warning | str, *_: object) -> None:
    print(f"jaxrl: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def parser() -> Parser:
    """The command line's grammar."""
    top = Parser(prog="jaxrl", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function: object, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        command.set_defaults(command=function)
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

    train = add("train", train_command, "train one setting, with one seed or several")
    add_run_arguments(train, "a hyper-parameter, or env.NAME, as `jaxrl list AGENT` shows them")
    which = train.add_mutually_exclusive_group()
    which.add_argument("--seed", type=natural, help="the seed (default: 0)")
    which.add_argument("--seeds", type=natural, help="run this many seeds: 0, 1, ...")

    sweep = add("sweep", sweep_command, "train every setting of a grid, or of a random search")
    add_run_arguments(sweep, "key=v1,v2 or key=log:low:high:n or key=lin:low:high:n or key=value")
    sweep.add_argument("--seeds", type=natural, help="seeds of each setting (default: 1)")
    sweep.add_argument("--random", type=natural, help="draw this many settings from the ranges")

    collect = add("collect", collect_command, "train an agent and record D4RL-style datasets")
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

    evaluate = add("eval", eval_command, "evaluate the trained agents of a run")
    evaluate.add_argument("run", metavar="DIR", type=Path)
    evaluate.add_argument("--member", type=int, help="only this member (default: all)")
    evaluate.add_argument("--episodes", type=positive, default=64, help="episodes per member")
    evaluate.add_argument("--seed", type=natural, default=0, help="of the episodes")
    evaluate.add_argument(
        "--stochastic", action="store_true", help="sample actions instead of taking the best"
    )

    watch = add("watch", watch_command, "show the curves of a run that goes on, or has ended")
    watch.add_argument("run", metavar="DIR", type=Path)
    watch.add_argument(
        "--every", metavar="SECONDS", type=positive, default=5, help="between drawings (default: 5)"
    )

    plot = add("plot", plot_command, "draw the learning curves of one or several runs")
    plot.add_argument("runs", metavar="DIR", type=Path, nargs="+")
    plot.add_argument("--out", type=Path, help="figure (default: DIR/curve.png, or curves.png)")

    listing = add("list", list_command, "list what there is")
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


def train_command(args: argparse.Namespace) -> int:
    seeds = [args.seed or 0] if args.seeds is None else range(args.seeds)
    return run(args, seeds=seeds, sweep=False, random=None)


def sweep_command(args: argparse.Namespace) -> int:
    seeds = range(1 if args.seeds is None else args.seeds)
    return run(args, seeds=seeds, sweep=True, random=args.random)


def run(args: argparse.Namespace, *, seeds: Sequence[int], sweep: bool, random: int | None) -> int:
    """Check everything, make the run folder, train, evaluate, save and report.

    Of several processes only one writes and reports; the others train their share.
    """
    check_resume(args)
    import time

    import jaxrl
    from jaxrl import hosts

    join(args)
    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    from experiments import curves, launch, report, runs
    from jaxrl.sinks import Sinks

    if args.resume:
        out = args.resume
        experiment, config = runs.resume(out, args.steps, args.line)
        evaluations, episodes = config["evaluations"], config["episodes"]
    else:
        experiment = launch.assemble(
            args.agent,
            args.env,
            args.settings,
            steps=args.steps,
            seeds=seeds,
            sweep=sweep,
            random=random,
            data=args.data,
        )
        # What learns from a file has no episodes of its own to show.
        evaluations = args.evaluations or (20 if args.data else 0)
        episodes = args.episodes or 64
        config = runs.config_of(experiment, args.line, evaluations, episodes)
        name = f"{args.agent}-{args.env.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
        out = args.out or Path("runs") / hosts.of_writer(name)
    command = f"jaxrl {'sweep' if sweep else 'train'} --resume {shlex.quote(str(out))}"
    with contextlib.ExitStack() as open_files:
        announce, sinks = None, Sinks([])
        if hosts.is_writer():
            if not args.resume:
                open_files.enter_context(runs.new(out))
            runs.write_config(out, config)
            members = len(experiment.settings) * len(experiment.seeds)
            meter = open_files.enter_context(report.Meter(experiment.total_steps))
            log = open_files.enter_context(sinks_of(args, out, members))
            announce, sinks = meter.say, Sinks([meter, log])
            if experiment.recipe:
                meter.say(f"recipe {experiment.recipe.name}: {experiment.recipe.line()}")
        try:
            population = jaxrl.sweep(
                experiment.agent,
                experiment.settings,
                seeds=experiment.seeds,
                evaluations=evaluations,
                announce=announce,
                progress=sinks,
                checkpoints=jaxrl.Checkpoints(
                    out / runs.CHECKPOINTS, args.checkpoint_every, args.keep
                ),
                on_nan=args.on_nan,
                memory=args.memory,
                data_parallel=args.data_parallel,
            )
            evaluation = population.evaluate(episodes)
        except ConnectionError as error:
            saved = any((out / runs.CHECKPOINTS).glob("*/[0-9]*"))
            hint = f"go on with: {command}" if saved else "nothing was saved yet"
            raise ConnectionError(f"{error}; {hint}") from None
        if not hosts.is_writer():
            return 0
        summary = runs.save(out, experiment, population, evaluation)
    curves.draw([runs.open_run(out)], out / "curve.png")
    report.results(summary)
    print(f"{out}: summary.json, metrics.npz, checkpoints, {out / 'curve.png'}")
    if population.interrupted:
        diverged = args.on_nan == "stop" and bool((population.diverged_at >= 0).any())
        why = "a member is not finite; go on without it" if diverged else "interrupted; go on with"
        fail(f"{why}: {command}")
        return DIVERGED if diverged else INTERRUPTED
    return 0


def join(args: argparse.Namespace) -> None:
    """Join the other processes of the run, where the options say that there are any."""
    elsewhere = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed and all(x is None for x in elsewhere):
        return
    if any(x is None for x in elsewhere) and any(x is not None for x in elsewhere):
        raise ValueError("--coordinator, --num-processes and --process-id belong together")
    from jaxrl import hosts

    hosts.connect(*elsewhere)
    args.joined = True


def sinks_of(args: argparse.Namespace, out: Path, members: int) -> Sinks:
    """Where the run's progress is written to, as the options say."""
    from jaxrl import sinks

    if args.log_member is not None and args.log_member >= members:
        raise ValueError(f"--log-member {args.log_member} is outside 0..{members - 1}")
    found: list[sinks.Sink] = [sinks.JsonLines(out / "log.jsonl")]
    if args.tensorboard:
        found.append(sinks.TensorBoard(out / "tensorboard", args.log_member))
    if args.wandb is not None:
        config = json.loads((out / "config.json").read_text())
        found.append(sinks.Wandb(args.wandb, config, args.log_member, dir=str(out)))
    return sinks.Sinks(found)


def check_resume(args: argparse.Namespace) -> None:
    """Raise ValueError where AGENT and ENV are missing, or stand beside --resume."""
    if args.resume is None:
        if args.env is None:
            raise ValueError("the following arguments are required: AGENT, ENV")
        return
    given = [word for word in (args.agent, args.env, *args.settings) if word is not None]
    for name in ("data", "evaluations", "out", "episodes", "seed", "seeds", "random"):
        if getattr(args, name, None) is not None:
            given.append(f"--{name}")
    if given:
        raise ValueError(
            f"{' '.join(given)}: --resume goes on with the settings that {args.resume} has; "
            "only --steps and options of saving, logging and --on-nan can be given"
        )


def collect_command(args: argparse.Namespace) -> int:
    import jaxrl

    jaxrl.use_compilation_cache()
    from experiments import collect, launch, report

    experiment = launch.assemble(
        args.agent, args.env, args.settings, steps=args.steps, seeds=[args.seed], sweep=False
    )
    out = args.out or Path("data") / args.env
    collect.check_folder(out, args.env)
    with report.Meter(experiment.total_steps) as meter:
        if experiment.recipe:
            meter.say(f"recipe {experiment.recipe.name}: {experiment.recipe.line()}")
        recordings = collect.collect(experiment, args.seed, args.size, meter)
    collect.write(recordings, out, args.env, collect.limit_of(experiment.agent.env_params))
    return 0


def eval_command(args: argparse.Namespace) -> int:
    import jax
    import numpy as np

    import jaxrl

    jaxrl.use_compilation_cache()
    from experiments import report, runs
    from jaxrl.stats import mean_ci

    folder = runs.open_run(args.run)
    rows, means = [], []
    for i, agent, state in folder.members(args.member):
        key = jax.random.fold_in(jax.random.key(args.seed), i)
        evaluation = jaxrl.evaluate(
            agent, state, key, args.episodes, deterministic=not args.stochastic
        )
        mean, *interval = map(float, mean_ci(np.asarray(evaluation.returns)))
        means.append(mean)
        seed = folder.summary["members"][i]["seed"]
        setting = report.setting_text(folder.setting(i))
        length = float(np.mean(np.asarray(evaluation.lengths)))
        rows.append(
            [
                *(str(i), setting, str(seed), report.number(mean)),
                report.interval_text(interval),
                report.number(length),
            ]
        )
    columns = ["member", "setting", "seed", "mean return", "95% over episodes", "mean length"]
    report.table(columns, rows, right=[c for c in columns if c != "setting"])
    mean, *interval = map(float, mean_ci(means))
    if len(means) > 1:
        print(f"mean over members {report.number(mean)}, 95% {report.interval_text(interval)}")
    return 0


def watch_command(args: argparse.Namespace) -> int:
    from experiments.watch import watch

    watch(args.run, args.every)
    return 0


def plot_command(args: argparse.Namespace) -> int:
    from experiments import curves, runs

    folders = [runs.open_run(path) for path in args.runs]
    out = args.out or (Path("curves.png") if len(folders) > 1 else args.runs[0] / "curve.png")
    curves.draw(folders, out)
    print(out)
    return 0


def list_command(args: argparse.Namespace) -> int:
    from experiments import listing

    if args.what in listing.LISTS:
        listing.LISTS[args.what]()
    else:
        listing.agent(args.what)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
