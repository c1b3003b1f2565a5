"""`jaxrl train` and `jaxrl sweep`: an experiment, from its words to its results.

Of several processes one writes and reports; the others train their share.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxrl
from experiments.command import messages, printing
from experiments.command.assemble import assemble, request_of
from experiments.runs import config as configuration
from experiments.runs import curves
from experiments.runs.experiment import Experiment
from experiments.runs.folder import RunFolder
from experiments.runs.search import PBT, Halving
from experiments.runs.summary import Seconds, summarise
from jaxrl import files
from jaxrl.training import hosts, sinks
from jaxrl.training.engine import compile_clock
from jaxrl.training.memory import readable
from jaxrl.training.meter import Meter


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, save and report as the command line asks; returns the exit status."""
    with begun(args) as (folder, experiment):
        again = how_to_go_on(args, folder)
        try:
            population = train(args, folder, experiment)
            began, compiled = time.perf_counter(), compile_clock()
            evaluation = population.evaluate(experiment.episodes)
        except ConnectionError as error:
            hint = f"go on with: {again}" if folder.can_be_resumed else "nothing was saved yet"
            raise ConnectionError(f"{error}; {hint}") from None
        compiling = compile_clock() - compiled
        seconds = Seconds(compiling, time.perf_counter() - began - compiling)
    if not hosts.is_writer():
        return 0
    resumes = configuration.resumes(folder.config)
    summary = summarise(experiment, population, evaluation, seconds, resumes)
    problem, figures = "", [folder.path / "curve.png"]
    try:
        folder.save(experiment, population, evaluation, summary)
        ended = RunFolder.open(folder.path)
        curves.draw([ended], figures[0])
        figures += curves.draw_found(ended)
    except (OSError, ValueError) as error:  # such as on a full disk
        problem = f"cannot write to {folder.path}: {error}; once it can be, go on with: {again}"
    printing.results(summary)
    if problem:
        messages.error(problem)
        return messages.BAD_INPUT
    saved = f"checkpoints ({readable(files.size_of(folder.checkpoints))})"
    written = ["summary.json", "results.csv", "metrics.npz", saved, *map(str, figures)]
    print(f"{folder.path}: {', '.join(written)}")
    if not population.interrupted:
        return 0
    if args.on_nan == "stop" and bool((population.history.diverged_at >= 0).any()):
        messages.error(f"a member is not finite; go on without it: {again}")
        return messages.DIVERGED
    messages.error(f"interrupted; go on with: {again}")
    return messages.INTERRUPTED


def how_to_go_on(args: argparse.Namespace, folder: RunFolder) -> str:
    """The command that goes on with a run, on devices that are used alike."""
    parallel = " --data-parallel" if args.data_parallel else ""
    return f"jaxrl {args.command} --resume {shlex.quote(str(folder.path))}{parallel}"


@contextlib.contextmanager
def begun(args: argparse.Namespace) -> Iterator[tuple[RunFolder, Experiment]]:
    """The run's folder and its experiment: new ones, or those of a run that is resumed."""
    if args.resume:
        folder = RunFolder.open(args.resume).resume(args.steps, args.line)
        experiment = folder.experiment()
        check_options(args, experiment)
        yield folder, experiment
        return
    experiment = assemble(request_of(args))
    check_options(args, experiment)
    what = re.sub("[/:]", "-", f"{experiment.agent_name}-{experiment.env_id}")
    name = f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    out = args.out or Path("runs") / hosts.of_writer(name)
    with RunFolder.create(out, experiment, args.line) as folder:
        yield folder, experiment


def check_options(args: argparse.Namespace, experiment: Experiment) -> None:
    """Raise ValueError where there is no such member, or its members train at once."""
    member, last = args.log_member, experiment.num_members - 1
    if member is not None and member > last:
        raise ValueError(f"--log-member {member} is outside 0..{last}")
    if args.data_parallel and experiment.search is not None:
        method = type(experiment.search).__name__.lower()
        raise ValueError(f"--data-parallel: members of --{method} train at once, not one by one")


def train(args: argparse.Namespace, folder: RunFolder, experiment: Experiment) -> jaxrl.Population:
    """The trained population of an experiment, its progress shown and written."""
    with contextlib.ExitStack() as shown:
        announce: Callable[[str], None] | None = None
        callbacks: list[jaxrl.Callback | Meter] = []
        if hosts.is_writer():
            logs = logs_of(args, folder, experiment)  # before the bar: they print what they set up
            meter = shown.enter_context(Meter(experiment.total_steps))
            announce, callbacks = meter.announce, [meter, *logs]
            if experiment.recipe:
                meter.say(experiment.recipe_line())
            if moved := configuration.moved(folder.config):
                meter.say(f"{folder.path}: {moved}")
        agent, settings, search = experiment.agent, experiment.settings, experiment.search
        options: dict[str, Any] = {
            "evaluations": experiment.evaluations,
            "announce": announce,
            "callbacks": callbacks,
            "checkpoints": jaxrl.Checkpoints(
                folder.checkpoints, args.checkpoint_every, args.keep, args.keep_replay
            ),
            "on_nan": args.on_nan,
            "memory": args.memory,
        }
        if isinstance(search, PBT):
            return jaxrl.pbt(agent, start=settings, **search._asdict(), **options)
        options["seeds"] = experiment.seeds
        if isinstance(search, Halving):
            return jaxrl.halving(agent, settings, **search._asdict(), **options)
        return jaxrl.sweep(agent, settings, data_parallel=args.data_parallel, **options)


class WriteDown(jaxrl.Callback):
    """Writes down that a run goes on once it does: one that is refused leaves its folder alone."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.is_written = folder, False

    def __call__(self, progress: jaxrl.Progress, states: Any | None) -> None:
        if not self.is_written:
            self.folder.write_config()
            self.is_written = True


def logs_of(
    args: argparse.Namespace, folder: RunFolder, experiment: Experiment
) -> list[jaxrl.Callback]:
    """Where the run's progress is written to, as the options say."""
    logs: list[jaxrl.Callback] = [WriteDown(folder), sinks.JsonLines(folder.log)]
    if args.tensorboard:
        logs.append(sinks.TensorBoard(folder.path / "tensorboard", args.log_member))
    if args.wandb is not None:
        # The same runs after a resume: what began this one tells it from all others.
        began = f"{folder.config.get('created')} {folder.config.get('command')}"
        logs.append(
            sinks.Wandb(
                args.wandb,
                {name: folder.config[name] for name in ("agent", "env", "hyperparameters")},
                args.log_member,
                table=experiment.table,
                id=hashlib.sha256(began.encode()).hexdigest()[:8],
                group=folder.path.resolve().name,
                dir=str(folder.path),
            )
        )
    return logs
