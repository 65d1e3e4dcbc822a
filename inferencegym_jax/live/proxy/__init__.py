"""The proxy that lets a policy control admission to a live engine."""
