"""The error that every reader of a latency table raises. Imports nothing of the package."""


class TableError(ValueError):
    """A latency table or engine profile that cannot be used; the message names the field or row and what is
    allowed."""
