"""The one exception that means: the user can mend this, and one line says how."""


class UserError(ValueError):
    """A mistake in a config, an argument or the data.

    The message is one line that names the key or argument, the value, and what
    would be accepted. Command-line programs print it and exit with code 2.
    """
