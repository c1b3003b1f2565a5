"""`python -m jaxrl`, and `jaxrl` itself: the command, which stands above the engine.

Which one it is, and which packages come with this one, is read from what is installed.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path


def hidden() -> str:
    """A line on a package of ours that another one hides; "" where there is none.

    Names such as `agents` are common: another installed package may have one, and so may the
    current folder, where Python looks first.
    """
    ours = Path(__file__).resolve().parents[1]
    for name in (distribution("jaxrl").read_text("top_level.txt") or "").split():
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if places and Path(places[0]).resolve().parent != ours:
            return (
                f"{places[0]} hides the package {name} of jaxrl in {ours}: "
                "uninstall it, or start from another folder"
            )
    return ""


def main() -> int:
    """Run the command; returns its exit status."""
    if line := hidden():
        print(f"jaxrl: error: {line}", file=sys.stderr)
        return 2
    (command,) = entry_points(group="jaxrl.command")
    return command.load()()


if __name__ == "__main__":
    raise SystemExit(main())
