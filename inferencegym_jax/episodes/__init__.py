"""Whole episodes: rollout, fold and evaluation over seeds, exhaustive static search, one step at a time from Python."""
