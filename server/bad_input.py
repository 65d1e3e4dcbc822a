"""What a client sent that only the library could judge."""


class BadInput(ValueError):
    """Input that only the library could judge; its message names field and value."""
