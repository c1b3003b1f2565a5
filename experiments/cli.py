"""The `jaxrl` command."""
