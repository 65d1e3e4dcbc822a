"""A latency table measured on a live engine: plan, cells, run, table."""
