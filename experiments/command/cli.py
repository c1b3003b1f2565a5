"""The `jaxrl` command: train, sweep, collect, eval, watch, plot, list, reproduce.

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
from typing import TYPE_CHECKING

from experiments.command import options

if TYPE_CHECKING:
    from jaxrl.training.sinks import Sinks

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
ALONE = 3  # where another process of the run is gone
DIVERGED = 1  # where --on-nan stop ended the run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for bad input, 130 for Ctrl-C, DIVERGED."""
    words = list(sys.argv[1:] if argv is None else argv)
    args, extra = options.parser().parse_known_args(words)
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
            return COMMANDS[args.command](args)
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
    from jaxrl.training import hosts

    join(args)
    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    from experiments.command import launch, report
    from experiments.runs import curves, runs
    from jaxrl.training.sinks import Sinks

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
            log = open_files.enter_context(contextlib.closing(sinks_of(args, out, members)))
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
    from jaxrl.training import hosts

    hosts.connect(*elsewhere)
    args.joined = True


def sinks_of(args: argparse.Namespace, out: Path, members: int) -> Sinks:
    """Where the run's progress is written to, as the options say."""
    from jaxrl.training import sinks

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
    from experiments.command import launch, report
    from experiments.runs import collect

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
    from experiments.command import report
    from experiments.runs import runs
    from jaxrl.report.stats import mean_ci

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
    from experiments.command.watch import watch

    watch(args.run, args.every)
    return 0


def plot_command(args: argparse.Namespace) -> int:
    from experiments.runs import curves, runs

    folders = [runs.open_run(path) for path in args.runs]
    out = args.out or (Path("curves.png") if len(folders) > 1 else args.runs[0] / "curve.png")
    curves.draw(folders, out)
    print(out)
    return 0


def list_command(args: argparse.Namespace) -> int:
    from experiments.command import listing

    if args.what in listing.LISTS:
        listing.LISTS[args.what]()
    else:
        listing.agent(args.what)
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    from experiments.studies.reproduce import reproduce

    reproduce(args)
    return 0


COMMANDS = {
    "train": train_command,
    "sweep": sweep_command,
    "collect": collect_command,
    "eval": eval_command,
    "watch": watch_command,
    "plot": plot_command,
    "list": list_command,
    "reproduce": reproduce_command,
}

if __name__ == "__main__":
    raise SystemExit(main())
