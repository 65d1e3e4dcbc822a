"""In which unit a log's times are written, where neither the user, nor the column's name, nor a date says so.

``all times of the log -> Survey -> unit``. Looks at the whole log, never at a first part of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from inferencegym_jax.traffic.log_rows import UNITS, TraceError

EPOCH_S = (1.1e9, 4.2e9)  # seconds since 1970 of the years 2004 to 2103
EPOCH_SHARE = 0.99  # of a log's times that must lie in those years
SEVERAL = 0.01  # share of the times in a second unit from which a log is in two
PLAUSIBLE = (0.02, 1000.0)  # requests/s that a log may have on average in a reading that nothing speaks for
PLAUSIBLE_PARTS = 100.0  # likewise, where times have decimals: few write parts of a millisecond
USUAL_RATE = 3.0  # requests/s; of two plausible readings the one whose rate is nearer to it, on a log scale
NAMES = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "min": "minutes", "h": "hours",
}  # fmt: skip
DISORDERED = 0.5  # share of rows that are earlier than one before them from which numbers may be no arrival times
LEAST_TREND = 0.5  # correlation of times with the order of rows, up or down, below which they are none
DAYS = {  # days that no unit of time here fits, as numbers of the years 2000 to 2100
    "a spreadsheet's days since 1900": (36526.0, 73051.0),
    "days since 1970": (10957.0, 47482.0),
}
TICKS = {  # 100 ns each, as numbers of the same years
    ".NET's ticks since the year 1": (6.3e17, 6.64e17),
    "Windows' file times since 1601": (1.259e17, 1.575e17),
}
DIGITS = re.compile(  # a date and time without separators, as 20260301101112
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d(?:\d{3})?)?)?"
)
LEAST_ROWS = 20  # from which order says something


class Unit(NamedTuple):
    """A unit of time."""

    name: str
    seconds: float  # in one
    notice: str | None  # where it was chosen among several


@dataclass
class Survey:
    """What all times of a log say together.

    Attributes:
        rows: how many.
        low, high: the least and the greatest.
        whole: whether all are whole numbers.
        epochs: how many lie in the years 2004 to 2103, by unit.
        late: rows that are earlier than a row before them.
    """

    rows: int = 0
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    epochs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    late: int = 0
    _first: float = 0.0
    _sums: np.ndarray = field(default_factory=lambda: np.zeros(5))  # of row, time, row^2, time^2, row x time

    def add(self, times: np.ndarray) -> None:
        """Count a block's times, in the order of the file."""
        if not len(times):
            return
        if not self.rows:
            self._first = float(times[0])
        rows, since = np.arange(self.rows, self.rows + len(times), dtype=np.float64), times - self._first
        self._sums += [rows.sum(), since.sum(), rows @ rows, since @ since, rows @ since]
        latest = np.maximum.accumulate(np.concatenate(([self.high], times)))
        self.late += int((times < latest[:-1]).sum())
        self.rows += len(times)
        self.low, self.high = min(self.low, float(times.min())), max(self.high, float(times.max()))
        self.whole = self.whole and bool((times == np.floor(times)).all())
        for name, seconds in UNITS.items():
            self.epochs[name] += int(((times * seconds >= EPOCH_S[0]) & (times * seconds <= EPOCH_S[1])).sum())

    @property
    def epoch(self) -> str | None:
        """The unit in which 99 % of the times lie in the years 2004 to 2103."""
        return next((name for name in UNITS if self.epochs[name] >= EPOCH_SHARE * self.rows), None)

    @property
    def shuffled(self) -> bool:
        """Whether the times neither rise nor fall with the rows, as those of requests in a log do."""
        if self.rows < LEAST_ROWS or self.low == self.high or self.epoch is not None:
            return False
        row, time, rows_2, times_2, both = self._sums / self.rows
        spread = np.sqrt(max(rows_2 - row**2, 0.0) * max(times_2 - time**2, 0.0))
        trend = (both - row * time) / spread if spread > 0 else 0.0
        return self.late > DISORDERED * self.rows and abs(trend) < LEAST_TREND

    def rate(self, unit: str) -> float:
        """Requests/s on average, were the times in ``unit``; infinite where all are equal."""
        span = (self.high - self.low) * UNITS[unit]
        return (self.rows - 1) / span if span > 0 else np.inf


def check_dates_as_numbers(place: str, survey: Survey) -> None:
    """Refuse dates that are written as numbers and that no unit of time here fits: days, ticks of 100 ns, digits of a
    date without separators.

    Raises:
        TraceError: they are; says what to do.
    """
    rate = survey.rate("s")
    if not survey.whole and rate > PLAUSIBLE[1] and PLAUSIBLE[0] <= rate / 86400.0 <= PLAUSIBLE[1]:
        which = [name for name, (low, high) in DAYS.items() if low <= survey.low and survey.high <= high]
    elif survey.whole and all(DIGITS.fullmatch(f"{time:.0f}") for time in (survey.low, survey.high)):
        which = ["dates in digits, whose differences are no times"]
    else:
        which = [name for name, (low, high) in TICKS.items() if low <= survey.low and survey.high <= high]
    if which:
        raise TraceError(
            f"{place} holds numbers like {survey.low:.{0 if survey.whole else 3}f}: {which[0]}; format it as date and"
            " time, as 2026-03-01 10:11:12, and save the log again"
        )


def check_one_unit(place: str, survey: Survey) -> None:
    """Refuse times since 1970 of which some are in one unit and some in another.

    Raises:
        TraceError: they are; says what to do.
    """
    units = {name: count for name, count in survey.epochs.items() if count > SEVERAL * survey.rows}
    if len(units) > 1 and sum(units.values()) >= EPOCH_SHARE * survey.rows:
        parts = ", ".join(f"{count} in {NAMES[name]}" for name, count in units.items())
        raise TraceError(f"{place} holds times since 1970 in several units: {parts}; bring them into one")


def unit_of(survey: Survey) -> Unit:
    """The unit of a log's times.

    Times of which 99 % lie in the years 2004 to 2103 in a unit are in that one, since 1970. Others count from a moment
    of their own: a unit is plausible where it makes 0.02 to 1,000 requests/s of the log; numbers with decimals are
    seconds wherever that is plausible, whole ones are of the unit that makes their rate more usual. Where several are
    plausible the notice names them.
    """
    if survey.epoch is not None:
        name = survey.epoch
        said = None if name == "s" else f"times of the size {survey.high:.3g} are taken as {name} since 1970"
        return Unit(name, UNITS[name], said)
    if survey.rows < 2 or survey.high == survey.low:
        return Unit("s", 1.0, None)
    rates = {name: survey.rate(name) for name in UNITS}
    most = PLAUSIBLE[1] if survey.whole else PLAUSIBLE_PARTS
    plausible = [
        name for name, rate in rates.items() if PLAUSIBLE[0] <= rate <= (PLAUSIBLE[1] if name == "s" else most)
    ]
    if not plausible:
        unit = "s" if rates["s"] >= PLAUSIBLE[0] else min(rates, key=lambda name: _unusual(rates[name]))
    elif not survey.whole and "s" in plausible:
        unit = "s"
    else:
        unit = min(plausible, key=lambda name: _unusual(rates[name]))
    others = [name for name in plausible if name != unit]
    if unit == "s" and not others:
        return Unit("s", 1.0, None)
    other = "; ".join(f"as {NAMES[name]} it would be {rates[name]:.3g} (unit {name})" for name in others or ["s"])
    return Unit(unit, UNITS[unit], f"times are taken as {NAMES[unit]} ({rates[unit]:.3g} requests/s; {other})")


def _unusual(rate: float) -> float:
    return abs(float(np.log(rate / USUAL_RATE)))


def check_order(place: str, survey: Survey, sure: bool) -> None:
    """Refuse numbers in no order under a name that may be that of a duration.

    Raises:
        TraceError: they are; says what to do.
    """
    if not sure and survey.shuffled:
        raise TraceError(
            f"{place}: {survey.late / survey.rows:.0%} of its rows are earlier than a row before them, so these look"
            " like durations, not times of arrival; name the column of arrivals: columns time=NAME (--columns ...)"
        )
