"""The version, in the one place where it is written; pyproject.toml and `ig.__version__` read it here."""

__version__ = "0.1.0"
