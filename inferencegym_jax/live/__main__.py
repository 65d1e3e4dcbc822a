"""``python -m inferencegym_jax.live``: measure, trial, control."""

from inferencegym_jax.live.cli import app

if __name__ == "__main__":
    app()
