"""Recipes by name: values only, each in a file with a function `get_config`."""
