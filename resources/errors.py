"""The one exception that reaches a person as a single line."""


class TampuError(Exception):
    """Something a person can mend. The message names the thing, its value, what was expected and the way out."""
