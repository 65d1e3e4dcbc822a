"""Runs measured on real engines, predicted by the same step and compared."""
