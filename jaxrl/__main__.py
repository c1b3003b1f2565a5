"""`python -m jaxrl`: the command that this package declares, which stands above the engine."""

from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="jaxrl")
raise SystemExit(command.load()())
