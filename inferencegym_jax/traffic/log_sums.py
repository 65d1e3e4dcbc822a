"""Logs whose rows are sums over several requests: told by columns of counts and of rates.

``names, first rows -> columns of counts that later rows have to bear out``; rows that are sums are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from inferencegym_jax.traffic.log_names import Sample, plain
from inferencegym_jax.traffic.log_rows import TraceError, named, plain_number

# counts of requests: a row that holds one is a sum over several
COUNTS = frozenset(
    "requests numrequests requestcount requestscount nrequests numberofrequests count calls numcalls callcount "
    "apirequests successfulrequests nummodelrequests modelrequests totalrequests invocations queries numqueries hits "
    "samples".split()
)
# rates of requests: a row that holds one is a sum too, whatever the rate
RATES = frozenset(
    "rps qps requestspers requestspersec requestspersecond reqpers reqpersec queriespersecond requestrate arrivalrate "
    "rpm requestspermin requestsperminute".split()
)
REMEDY = "wanted: one row a request. If they are requests, name the columns: columns time=NAME,prompt=NAME,output=NAME"


def counts_of(file: str, columns: Sequence[str], sample: Sample) -> tuple[str, ...]:
    """Columns of counts of requests, where the first rows are of one each.

    Args:
        file: what messages call the log.
        columns: its columns' names.
        sample: their first cells.

    Raises:
        TraceError: rows are sums over requests; says what to do.
    """
    counts: list[str] = []
    for column in columns:
        name = plain(column.rpartition(".")[2])
        cells = sample.get(column, ())
        values = [float(cell or 0) for cell in cells if plain_number(cell)]
        if name in RATES and values:
            raise TraceError(
                f"{file}: column {named([column])} is a rate of requests, so the rows are sums over several; {REMEDY}"
            )
        if name in COUNTS and values:
            if max(values) > 1:
                raise rows_are_sums(file, column, max(values))
            if len(values) == len(cells):
                counts.append(column)
    return tuple(counts)


def rows_are_sums(place: str, column: str, count: float) -> TraceError:
    """The error of rows that are no single requests; ``place`` names file and row."""
    return TraceError(
        f"{place}: the rows are sums over several requests (column {named([column])} holds up to {count:g}); {REMEDY}"
    )
