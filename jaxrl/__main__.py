"""`python -m jaxrl`: the `jaxrl` command."""

from experiments.command.cli import main

raise SystemExit(main())
