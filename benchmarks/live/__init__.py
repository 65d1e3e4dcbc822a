"""``make live``: measure, predict, trial and control against a real vLLM on this machine's CPU; the figures of
docs/live.md.

``engine -> stages -> results.json``. Each stage writes what it found into the results file, so that stages can be run
alone.
"""
