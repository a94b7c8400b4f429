"""From a config to calls: a section is the keyword arguments of one function."""
