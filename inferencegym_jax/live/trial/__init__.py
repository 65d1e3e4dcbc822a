"""Policies compared on a live engine with the same traffic, beside what the table predicts."""
