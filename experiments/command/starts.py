"""What a run starts from: AGENT and ENV, the setting of a run (--from), or a run (--resume)."""

from __future__ import annotations

import argparse

# Not beside --resume: what the run that goes on has already.
KEPT = (
    "recipe",
    "data",
    "data_steps",
    "reference",
    "evaluations",
    "out",
    "episodes",
    "record",
    "seed",
    "seeds",
    "random",
    "search_seed",
    "halving",
    "halving_from",
    "pbt",
    "pbt_every",
)


def settle(args: argparse.Namespace) -> None:
    """Check that a run starts from one of them; key=value words beside --from become settings.

    Raises: ValueError where none is given, or what belongs to another.
    """
    source = getattr(args, "source", None)  # `sweep` has no --from
    chooses = getattr(args, "best", False) or getattr(args, "member", None) is not None
    if source is None and chooses:
        raise ValueError("--best and --member choose from a run: give --from DIR as well")
    words = [word for word in (args.agent, args.env, *args.settings) if word is not None]
    if args.resume is not None:
        given = words + [option_of(x) for x in KEPT if getattr(args, x, None) is not None]
        given += ["--from"] if source is not None else []
        if given:
            raise ValueError(
                f"{' '.join(given)}: --resume goes on with the settings that {args.resume} has; "
                "it takes --steps, --on-nan and the options of saving, logging and devices only"
            )
    elif source is not None:
        given = [word for word in words if "=" not in word]
        given += ["--recipe"] if args.recipe is not None else []
        if given:
            raise ValueError(
                f"{' '.join(given)}: --from takes these from the run in {source}; "
                "key=value may be added"
            )
        args.agent, args.env, args.settings = None, None, words
    elif args.env is None:
        raise ValueError("the following arguments are required: AGENT, ENV")


def option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"
