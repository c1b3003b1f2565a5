"""What runs things: the `jaxrl` command, run folders and recipes."""
