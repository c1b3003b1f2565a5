"""The `jaxrl` command: train, sweep, collect, data, eval, export and others.

Only the command that is asked for imports what it needs, so that `--help` and the listings answer
at once. Bad input ends with one line on standard error and exit status 2, nothing compiled.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.command import messages, options, starts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 0 or one of those in `messages`."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know ASCII only
            stream.reconfigure(errors="replace")
    try:
        args = options.parse(words)
    except ValueError as error:
        messages.error(str(error))
        return messages.BAD_INPUT
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module="jaxrl|experiments")
            warnings.showwarning = messages.warn  # type: ignore[assignment]
            status = COMMANDS[args.command](args)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # nobody reads the results any more, as with `jaxrl list envs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return messages.UNREAD
    except ValueError as error:
        messages.error(str(error))
        status = messages.BAD_INPUT
    except KeyboardInterrupt:
        messages.error("interrupted")
        status = messages.INTERRUPTED
    except ConnectionError as error:
        messages.error(str(error))
        status = messages.ALONE
    except Exception as error:
        if isinstance(error, RuntimeError) and "initialize backend" in str(error):
            messages.error(str(error))  # JAX_PLATFORMS names what is not there
            return messages.BAD_INPUT
        if not args.joined:
            raise
        traceback.print_exc()
        status = 1
    if args.joined:  # to leave in order would wait for the other processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def train_command(args: argparse.Namespace) -> int:
    """`jaxrl train` and `jaxrl sweep`."""
    starts.settle(args)
    join(args)
    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    from experiments.command.train import run

    return run(args)


def join(args: argparse.Namespace) -> None:
    """Join the other processes of the run, where the options say that there are any.

    It comes before anything that makes JAX look at its devices.
    """
    address = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed and all(x is None for x in address):
        return
    if any(x is None for x in address) and any(x is not None for x in address):
        raise ValueError("--coordinator, --num-processes and --process-id belong together")
    from jaxrl.training import hosts

    hosts.connect(*address)
    args.joined = True


def collect_command(args: argparse.Namespace) -> int:
    import jaxrl

    jaxrl.use_compilation_cache()
    from experiments.command.assemble import assemble, request_of
    from experiments.command.printing import recordings
    from experiments.runs import collect
    from jaxrl.training.meter import Meter

    experiment = assemble(request_of(args))
    out = args.out or Path("data") / args.env
    collect.check_folder(out, args.env)
    with Meter(experiment.total_steps) as meter:
        if experiment.recipe:
            meter.say(experiment.recipe_line())
        recorded = collect.collect(experiment, args.size, meter)
    recordings(collect.write(recorded, out, experiment))
    return 0


def data_command(args: argparse.Namespace) -> int:
    from experiments.command.data import data

    data(args)
    return 0


def eval_command(args: argparse.Namespace) -> int:
    import jaxrl

    jaxrl.use_compilation_cache()
    if args.data:
        from experiments.command.values import values

        values(args)
    else:
        from experiments.command.evaluate import evaluate

        evaluate(args)
    return 0


def export_command(args: argparse.Namespace) -> int:
    import jaxrl

    jaxrl.use_compilation_cache()
    from experiments.command.export import export

    export(args)
    return 0


def render_command(args: argparse.Namespace) -> int:
    # Read when mujoco is imported. Without a screen it draws by EGL, where that is installed.
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    import jaxrl

    jaxrl.use_compilation_cache()
    from experiments.command.render import render

    render(args)
    return 0


def watch_command(args: argparse.Namespace) -> int:
    from experiments.command.watch import watch

    watch(args.run, args.every)
    return 0


def plot_command(args: argparse.Namespace) -> int:
    if args.profile:
        from experiments.command.profile import profile

        profile(args)
        return 0
    if args.reference:
        raise ValueError("--reference has no effect without --profile")
    from experiments.runs import curves
    from experiments.runs.folder import RunFolder

    folders = [RunFolder.open(path) for path in args.runs]
    out = args.out or (Path("curves.png") if len(folders) > 1 else args.runs[0] / "curve.png")
    curves.draw(folders, out)
    print(out)
    if args.out is None and len(folders) == 1:
        for found in curves.draw_found(folders[0]):
            print(found)
    return 0


def recipe_command(args: argparse.Namespace) -> int:
    from experiments.command.recipe import show

    show(args.run)
    return 0


def open_run(path: str | Path) -> Any:
    """What `jaxrl.open_run` gives: the engine knows this command, but no run folders."""
    from experiments.runs.opened import open_run

    return open_run(path)


def list_command(args: argparse.Namespace) -> int:
    import agents
    from experiments.command import listing

    if args.what in listing.LISTS:
        listing.LISTS[args.what]()
    elif args.what in agents.AGENTS or not listing.is_environment(args.what):
        listing.agent(args.what)
    else:
        listing.environment(args.what)
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    from experiments.studies.reproduce import reproduce

    reproduce(args)
    return 0


COMMANDS = {
    "train": train_command,
    "sweep": train_command,
    "collect": collect_command,
    "data": data_command,
    "eval": eval_command,
    "export": export_command,
    "render": render_command,
    "watch": watch_command,
    "plot": plot_command,
    "list": list_command,
    "recipe": recipe_command,
    "reproduce": reproduce_command,
}

if __name__ == "__main__":
    raise SystemExit(main())
