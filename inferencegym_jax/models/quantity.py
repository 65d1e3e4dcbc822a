"""What is said once of every number that the simulator reports: unit, meaning, and how people look at it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One reported number, or a short vector of them.

    Attributes:
        description: what it is.
        unit: of its values.
        kind: "float", "int" or "bool".
        size: numbers that it takes; 1 is a plain number.
        title: what people read on pages and plots; empty: its name.
        scale: "linear" or "log", of axes and of normalised values.
        digits: decimals that are worth showing.
        chart: what the server's page draws of it over an episode: its "value", its running "sum", a line for each of
            the three "classes", a "band" on top of the others of its table's, or "" for nothing.
        exogenous: whether it is traffic, the same whatever the agent does.
    """

    description: str
    unit: str = ""
    kind: str = "float"
    size: int = 1
    title: str = ""
    scale: str = "linear"
    digits: int = 0
    chart: str = ""
    exogenous: bool = False
