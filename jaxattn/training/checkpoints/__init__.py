"""The states and weights that a workdir holds."""
