"""`jaxrl export`: the policy of a trained agent as a folder of its own."""

from __future__ import annotations

import argparse
from typing import Any

import jax

import jaxrl
from experiments.runs.config import scalars
from experiments.runs.folder import RunFolder, TrainedMember
from jaxrl.report.formatting import number, setting_text


def export(args: argparse.Namespace) -> None:
    """Evaluate a member in fresh episodes, as `jaxrl eval` does, and write its policy down.

    Raises: ValueError where there are several members and none was chosen, or it cannot be written.
    """
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise ValueError(f"{args.out} is there already: choose another OUT")
    folder = RunFolder.open(args.run)
    which = folder.chosen(args.member, args.best)
    members = len(folder.listing["members"])
    if which is None and members > 1:
        raise ValueError(f"{folder.path} has {members} members: choose by --member I or --best")
    (member,) = folder.members(which, args.checkpoint)
    key = jax.random.fold_in(jax.random.key(args.seed), member.number)
    evaluation = jaxrl.evaluate(member.agent, member.state, key, args.episodes)
    formats = ("jax",) if args.format == "jax" else ()
    about = origin_of(folder, member)
    jaxrl.export(member, args.out, evaluation=evaluation, formats=formats, about=about)
    setting = setting_text({**member.setting, "seed": member.seed})
    print(f"member {member.number} ({setting}) after iteration {member.iteration:,}")
    print(f"mean return {number(float(evaluation.returns.mean()))} over {args.episodes} episodes")
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


def origin_of(folder: RunFolder, member: TrainedMember) -> dict[str, Any]:
    """Where a member comes from, to be written down with its policy."""
    config = folder.config
    return {
        "command": config.get("command"),
        "created": config.get("created"),
        "commit": config.get("git_commit"),
        "member": member.number,
        "seed": member.seed,
        "environment options": config["env_options"],
        "environment parameters": scalars(member.agent.env_params),
        "data": config["data"],
    }
