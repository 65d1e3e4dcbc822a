"""Draws, Poisson, interpolation, bootstrap, and how the compiler is told what to compute once."""
