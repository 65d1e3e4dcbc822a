"""A policy in the loop with a live engine: observe, decide, admit."""
