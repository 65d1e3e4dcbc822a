"""``python -m inferencegym_jax.cli``."""

import sys

from inferencegym_jax.cli import main

sys.exit(main())
