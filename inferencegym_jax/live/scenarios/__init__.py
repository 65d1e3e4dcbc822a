"""Trials whose traffic, objectives and rivals are fixed beforehand: ``second-instance`` and ``drift``."""
