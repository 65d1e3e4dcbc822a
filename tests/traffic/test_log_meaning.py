"""What a log's columns and numbers mean: units, arrivals and durations, sums, cached tokens, doubled columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferencegym_jax.traffic.request_log import TraceError
from tests.traffic.test_log_kinds import CSV, DATES, ROWS, TIMES, lines, objects, read, table, the_requests, written

NAMES = "prompt_tokens,output_tokens"


def log(tmp_path: Path, header: str, rows: Any, **options: Any) -> Any:
    return read(written(tmp_path, table(header, rows)), **options)


def at_rate(rate: float, seconds: float, unit: float, digits: int | None = None) -> list[tuple[float, int, int]]:
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, seconds, int(rate * seconds))) * unit
    return [(round(t, digits), 300, 100) for t in times.tolist()]


@pytest.mark.parametrize(
    ("rate", "unit", "digits", "chosen"),
    [
        (40, 1e3, None, "milliseconds"),  # as seconds 0.04/s
        (25, 1e3, None, "milliseconds"),
        (0.3, 1, None, "seconds"),  # as milliseconds 300/s
        (5, 1e6, None, "microseconds"),
        (5, 1e9, None, "nanoseconds"),
        (0.05, 1, 3, "seconds"),  # decimals
    ],
)
def test_of_two_plausible_units_the_notice_names_both(
    tmp_path: Path, rate: float, unit: float, digits: int | None, chosen: str
) -> None:
    seconds = 600 if rate > 1 else 6000
    found = log(tmp_path, f"timestamp,{NAMES}", at_rate(rate, seconds, unit, digits))
    assert found.rate == pytest.approx(rate, rel=0.1)
    assert f"times are taken as {chosen}" in found.notices[0] and "it would be" in found.notices[0]
    name = {"seconds": "s", "milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}[chosen]
    assert log(tmp_path, f"timestamp,{NAMES}", at_rate(rate, seconds, unit, digits), unit=name).notices == ()


def test_the_unit_is_that_of_the_whole_log_not_of_its_first_rows(tmp_path: Path) -> None:
    rare = [(i * 60_000, 300, 100) for i in range(1000)]  # one a minute at first: as its first rows, seconds or more
    busy = [(60_000_000 + i * 20, 300, 100) for i in range(20_000)]
    found = log(tmp_path, f"timestamp,{NAMES}", rare + busy)
    assert found.seconds == 60_400 and "milliseconds" in found.notices[0]


@pytest.mark.parametrize(("name", "scale"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_times_since_1970_say_their_unit(tmp_path: Path, name: str, scale: float) -> None:
    rows = [(round((1772359200 + t) * scale), p, o) for t, p, o in ROWS]
    found = log(tmp_path, f"ts,{NAMES}", rows)
    assert found.requests == len(ROWS) and abs(found.seconds - 60) <= 1
    unit = [notice for notice in found.notices if "since 1970" in notice]
    assert len(unit) == (name != "s") and all(f"are taken as {name}" in notice for notice in unit)


def durations() -> list[float]:
    return [o / 50 for _, _, o in ROWS]


def test_a_duration_is_not_taken_for_a_time_of_arrival(tmp_path: Path) -> None:
    rows = [(d, *row) for d, row in zip(durations(), ROWS, strict=True)]
    assert the_requests(log(tmp_path, f"time,start_ts,{NAMES}", rows))
    assert the_requests(log(tmp_path, f"request_time,arrived_at,{NAMES}", rows))
    alone = [(d, p, o) for d, (_, p, o) in zip(durations(), ROWS, strict=True)]
    for name in ("time", "request_time", "Time"):
        with pytest.raises(TraceError, match="earlier than a row before them, so these look like durations"):
            log(tmp_path, f"{name},{NAMES}", alone)
    assert log(tmp_path, f"time,{NAMES}", alone, columns="time=time").requests == len(ROWS)  # the user says so
    with pytest.raises(TraceError, match="no column of time among 'latency_s', 'duration'"):
        log(tmp_path, f"latency_s,duration,{NAMES}", [(d, *row) for d, row in zip(durations(), ROWS, strict=True)])


def test_rows_in_another_order_are_the_same_log(tmp_path: Path) -> None:
    order = np.random.default_rng(2).permutation(len(ROWS))
    dates = [(d.isoformat(), p, o) for d, (_, p, o) in zip(DATES, ROWS, strict=True)]
    for header, rows in (
        ("time", ROWS[::-1]),
        ("timestamp", [ROWS[i] for i in order]),
        ("time", [dates[i] for i in order]),
    ):
        found = log(tmp_path, f"{header},{NAMES}", rows)
        assert the_requests(found) and "earlier than a row before them; sorted by time" in found.notices[-1]
    stamped = [(round(1772359200 + float(TIMES[i]), 3), *ROWS[i][1:]) for i in order]
    assert the_requests(log(tmp_path, f"time,{NAMES}", stamped))


@pytest.mark.parametrize("name", ["requests", "num_requests", "count", "n_requests", "api_requests", "Request Count"])
def test_sums_over_requests_are_refused(tmp_path: Path, name: str) -> None:
    rows = [(60 * i, 30, 30 * p, 30 * o) for i, (_, p, o) in enumerate(ROWS)]
    with pytest.raises(TraceError, match=f"rows are sums over several requests .column '{name}' holds up to 30"):
        log(tmp_path, f"timestamp,{name},{NAMES}", rows)
    ones = [(t, 1, p, o) for t, p, o in ROWS]
    assert the_requests(log(tmp_path, f"timestamp,{name},{NAMES}", ones))


def test_rows_a_minute_apart_are_asked_about_and_days_refused(tmp_path: Path) -> None:
    minutes = [(f"2026-03-01T{10 + i // 60}:{i % 60:02}:00Z", p, o) for i, (_, p, o) in enumerate(ROWS)]
    found = log(tmp_path, f"timestamp,{NAMES}", minutes)
    assert any("every row is 60 s after the one before" in notice for notice in found.notices)
    with pytest.raises(TraceError, match="line 2: date is '2026-03-01'; wanted: a date with its time of day"):
        log(tmp_path, f"date,{NAMES}", [("2026-03-01", p, o) for _, p, o in ROWS])


def prompts_of(found: Any) -> float:
    return found.mean_prompt * found.requests


TOTAL = sum(p for _, p, _ in ROWS)


def test_cached_tokens_that_stand_apart_are_counted(tmp_path: Path) -> None:
    anthropic = "timestamp,input_tokens,cache_read_input_tokens,cache_creation_input_tokens,output_tokens"
    found = log(tmp_path, anthropic, [(t, 10, p, "", o) for t, p, o in ROWS])
    assert prompts_of(found) == pytest.approx(TOTAL + 10 * len(ROWS))
    assert "'cache_read_input_tokens', 'cache_creation_input_tokens' is added to 'input_tokens'" in found.notices[0]
    nested = objects(
        timestamp=lambda d, p, o: d,
        usage=lambda d, p, o: {"input_tokens": 10, "cache_read_input_tokens": p, "output_tokens": o},
    )
    assert prompts_of(read(written(tmp_path, lines(nested), "a.jsonl"))) == pytest.approx(TOTAL + 10 * len(ROWS))
    more = log(tmp_path, "timestamp,input_tokens,cached_tokens,output_tokens", [(t, 10, p, o) for t, p, o in ROWS])
    assert prompts_of(more) == pytest.approx(TOTAL + 10 * len(ROWS))  # more are cached than there are: they stand apart
    sums = [(t, p, p // 2, o, p + p // 2 + o) for t, p, o in ROWS]
    total = log(tmp_path, "timestamp,prompt_tokens,cached_tokens,output_tokens,total_tokens", sums)
    assert prompts_of(total) == pytest.approx(sum(p + p // 2 for _, p, _ in ROWS))  # the total says so


def test_cached_tokens_within_the_prompt_are_counted_once(tmp_path: Path) -> None:
    part = [(t, p, p // 2, o) for t, p, o in ROWS]
    found = log(tmp_path, "timestamp,prompt_tokens,cached_tokens,output_tokens", part)
    assert the_requests(found) and "columns prompt=prompt_tokens+cached_tokens" in found.notices[0]
    apart = {"columns": "prompt=prompt_tokens+cached_tokens"}
    both = log(tmp_path, "timestamp,prompt_tokens,cached_tokens,output_tokens", part, **apart)
    assert prompts_of(both) == pytest.approx(sum(p + p // 2 for _, p, _ in ROWS))
    late = [(0.01 * i, 100, 50, 10) for i in range(1500)] + [(16, 100, 300, 10)]
    with pytest.raises(TraceError, match="line 1502: cached_tokens is 300 where prompt_tokens is 100"):
        log(tmp_path, "timestamp,prompt_tokens,cached_tokens,output_tokens", late)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("timestamp,prompt_tokens,prompt_tokens,output_tokens", "the column 'prompt_tokens' is there 2 times"),
        ("timestamp,prompt_tokens,Prompt Tokens,output_tokens", "'prompt_tokens', 'Prompt Tokens' could each be"),
        ("timestamp,Timestamp,prompt_tokens,output_tokens", "'timestamp', 'Timestamp' could each be the time"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, header: str, said: str) -> None:
    rows = [(t, p, p + 1, o) for t, p, o in ROWS]
    with pytest.raises(TraceError, match=said):
        log(tmp_path, header, rows)


def test_two_columns_of_one_meaning_are_named_where_they_differ(tmp_path: Path) -> None:
    rows = [(t, p, p + 1, o) for t, p, o in ROWS]
    found = log(tmp_path, "timestamp,prompt_tokens,input_tokens,output_tokens", rows)
    assert the_requests(found) and "'input_tokens' differs and is not used" in found.notices[0]
    same = log(tmp_path, "timestamp,prompt_tokens,input_tokens,output_tokens", [(t, p, p, o) for t, p, o in ROWS])
    assert the_requests(same) and same.notices == ()
    twice = '{"timestamp": 1, "prompt_tokens": 3, "prompt_tokens": 4, "output_tokens": 4}\n'
    with pytest.raises(TraceError, match="line 1: the field 'prompt_tokens' is there twice"):
        read(written(tmp_path, twice, "a.jsonl"))


def test_dates_are_of_one_kind_in_the_whole_log(tmp_path: Path) -> None:
    rows = [(d.isoformat(), p, o) for d, (_, p, o) in zip(DATES, ROWS, strict=True)]
    rows[-1] = ("2026-03-01T10:01:00", 5, 5)
    with pytest.raises(TraceError, match=r"line 301: created_at is '2026-03-01T10:01:00'; wanted: dates with a zone"):
        log(tmp_path, f"created_at,{NAMES}", rows)
    with pytest.raises(TraceError, match="line 2: created_at is '03/01/2026 10:00:00'.*day or month stands first"):
        log(tmp_path, f"created_at,{NAMES}", [("03/01/2026 10:00:00", 5, 5)])


def test_rows_by_the_time_of_their_end_are_arrivals_and_a_trendless_column_is_asked_about(tmp_path: Path) -> None:
    ended = sorted(ROWS, key=lambda row: row[0] + row[2] * 0.03)
    assert the_requests(log(tmp_path, f"time,{NAMES}", ended))
    found = log(tmp_path, f"timestamp,{NAMES}", [(d, p, o) for d, (_, p, o) in zip(durations(), ROWS, strict=True)])
    assert "the rows stand in no order of 'timestamp': is it the time of arrival?" in found.notices


def test_the_odd_row_is_named_also_where_it_is_the_first(tmp_path: Path) -> None:
    stamped = [(round(1000 * (1772359200 + t)), p, o) for t, p, o in ROWS]
    with pytest.raises(TraceError, match="line 2: timestamp is 0, 20513 days from the others"):
        log(tmp_path, f"timestamp,{NAMES}", [(0, 1, 1), *stamped])
    with pytest.raises(TraceError, match="line 302: timestamp is 0, 20513 days from the first row"):
        log(tmp_path, f"timestamp,{NAMES}", [*stamped, (0, 1, 1)])


def test_a_spreadsheets_days_are_no_seconds(tmp_path: Path) -> None:
    with pytest.raises(
        TraceError, match="column 'timestamp' holds numbers like 46082.*a spreadsheet's days since 1900"
    ):
        log(tmp_path, f"timestamp,{NAMES}", [(f"{46082.4166 + t / 86400:.8f}", p, o) for t, p, o in ROWS])


def test_requests_that_failed_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = objects(
        timestamp=lambda d, p, o: d, status=200, usage=lambda d, p, o: {"prompt_tokens": p, "completion_tokens": o}
    )
    failed = [{"timestamp": "2026-03-01T10:00:09Z", "status": 503, "usage": None}] * 7
    found = read(written(tmp_path, lines(rows + failed), "a.jsonl"))
    assert the_requests(found) and "7 requests that failed (status) and have no output are left out" in found.notices
    unmarked = [{"timestamp": "2026-03-01T10:00:09Z", "status": 200, "usage": None}]
    with pytest.raises(TraceError, match="line 301: usage.prompt_tokens is nothing"):
        read(written(tmp_path, lines(rows + unmarked), "a.jsonl"))


def test_messages_never_hold_a_users_text(tmp_path: Path) -> None:
    secret = "tell me what 2 and 2 are, I beg you"
    logs = [
        lines(objects(timestamp=lambda d, p, o: d, prompt=secret, completion=secret)),
        table(f"timestamp,{secret.replace(',', '')},output_tokens" * 60, ROWS),
        table(f"timestamp,{NAMES}", [(t, f'"{secret}"', o) for t, _, o in ROWS]),
        '{"timestamp": 1, "prompt_tokens": "' + secret + '", "output_tokens": 2}',
        f'{{"timestamp": 1, "prompt": "{secret}" oops',
    ]
    for i, text in enumerate(logs):
        with pytest.raises(TraceError) as error:
            read(written(tmp_path, text, f"log{i}"))
        assert "I beg" not in str(error.value) or i == 1
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("time=when,prompt=z,output=c", "columns: no column 'z' for prompt; there are 'when', 'a', 'b', 'c'"),
        ("when=time", "columns: 'when' is no role; must be one of time, prompt, output"),
        ("time", "columns: 'time' is no role=column"),
        ("time=when,time=a", "columns: time is given twice"),
        ("time=", "columns: time names no column"),
    ],
)
def test_columns_that_are_given_must_be_there(tmp_path: Path, columns: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        log(tmp_path, "when,a,b,c", [(t, p, 1, o) for t, p, o in ROWS], columns=columns)


def test_columns_may_be_given_and_added_up(tmp_path: Path) -> None:
    rows = [(t, p - 1, 1, o) for t, p, o in ROWS]
    assert the_requests(log(tmp_path, "when,a,b,c", rows, columns="time=when,prompt=a+b,output=c"))
    assert the_requests(
        log(tmp_path, "when,a,b,c", rows, columns={"time": "when", "prompt": ["a", "b"], "output": "c"})
    )
    assert the_requests(log(tmp_path, "when,a,b,output_tokens", rows, columns="time=when,prompt=a+b"))


LONG = [(round(86400 * day + 40 * i, 1), 300, 100) for day in range(61) for i in range(1000)]


def test_a_log_of_months_is_read_in_part(tmp_path: Path) -> None:
    path = written(tmp_path, table(f"time_s,{NAMES}", LONG))
    with pytest.raises(TraceError, match=r"at most 31 days. Of a longer log read a part: .*--from, --to, --last 7d"):
        read(path)
    week = read(path, last="7d")
    assert week.requests == 7000 and week.start_s == 54 * 86400
    assert read(path, start="2d", end="3d").requests == 1000
    assert read(path, start=0, end=400.0).requests == 10
    with pytest.raises(TraceError, match="no request in the part that is wanted; the log is 1.45e.03 hours long"):
        read(path, start="70d")
    with pytest.raises(TraceError, match="start = '2026-03-01' is a date, and the log's times are none"):
        read(path, start="2026-03-01")


def test_a_part_between_dates(tmp_path: Path) -> None:
    path = written(
        tmp_path, table(f"at,{NAMES}", [(d.isoformat(), p, o) for d, (_, p, o) in zip(DATES, ROWS, strict=True)])
    )
    part = read(path, columns="time=at", start="2026-03-01T10:00:20", end="2026-03-01T11:00:30+01:00")
    assert part.requests == sum(20 <= t < 30 for t in TIMES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"last": "soon"}, "last = 'soon': must be seconds, a duration like 90m, 2h or 3d"),
        ({"last": "2026-03-01"}, "last = "),
        ({"start": -1}, "start = -1: must be a finite number of seconds of at least 0"),
        ({"start": float("nan")}, "start = nan"),
        ({"start": 1, "last": 1}, "last together with start or end"),
        ({"unit": "min"}, "unit = 'min': must be one of s, ms, us, ns"),
    ],
)
def test_parts_and_units_that_are_none_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(written(tmp_path, CSV), **options)


@pytest.mark.parametrize(
    ("header", "scale", "said"),
    [
        ("timestamp_ms", 1.0, "'timestamp_ms' says milliseconds, its numbers, like 1772359200"),
        ("time_s", 1e3, "says seconds, its numbers, like 1.7723592e+12, are milliseconds since 1970"),
        ("startTimeUnixNano", 1e6, "are microseconds since 1970; say which: unit us (--unit us)"),
    ],
)
def test_numbers_that_contradict_the_unit_in_the_name_are_asked_about(
    tmp_path: Path, header: str, scale: float, said: str
) -> None:
    rows = [(round((1772359200 + t) * scale, 3), p, o) for t, p, o in ROWS]
    with pytest.raises(TraceError) as failed:
        log(tmp_path, f"{header},{NAMES}", rows)
    assert said in str(failed.value)
    unit = {1.0: "s", 1e3: "ms", 1e6: "us"}[scale]
    assert log(tmp_path, f"{header},{NAMES}", rows, unit=unit).requests == len(ROWS)


def test_a_log_within_a_thousandth_of_a_second_has_another_unit(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="probably in another unit"):
        log(tmp_path, f"ts_ns,{NAMES}", [(500 * i, 300, 100) for i in range(600)])  # milliseconds, in truth


@pytest.mark.parametrize("name", ["rps", "qps", "requests_per_s", "Requests per second", "arrival_rate"])
def test_a_rate_of_requests_stands_in_no_row_of_one_request(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="is a rate of requests"):
        log(tmp_path, f"timestamp,{name},{NAMES}", [(60 * i, 0.7, 300, 100) for i in range(50)])


def test_a_count_or_cached_tokens_after_the_first_rows_count_as_much(tmp_path: Path) -> None:
    plain_rows = [(0.2 * i, 1, 300, 100) for i in range(3000)]
    with pytest.raises(TraceError, match=r"line 3002: the rows are sums over several requests \(column 'requests'"):
        log(tmp_path, f"time_s,requests,{NAMES}", [*plain_rows, (601.0, 7, 300, 100)])
    cached = [(0.2 * i, 0, 300, 100) for i in range(3000)]
    with pytest.raises(TraceError, match="line 3002: cached_tokens is 500 where prompt_tokens is 100"):
        log(tmp_path, f"time_s,cached_tokens,{NAMES}", [*cached, (601.0, 500, 100, 100)])
    assert log(tmp_path, f"time_s,cached_tokens,{NAMES}", cached).notices == ()


def test_pandas_name_of_a_second_column_is_no_other_name(tmp_path: Path) -> None:
    rows = [(i, 300, 310, 100) for i in range(20)]
    with pytest.raises(TraceError, match=r"'prompt_tokens', 'prompt_tokens.1' could each be the prompt tokens"):
        log(tmp_path, "time_s,prompt_tokens,prompt_tokens.1,output_tokens", rows)
    assert log(tmp_path, "time_s,prompt_tokens,prompt_tokens.1,output_tokens", rows, columns="prompt=prompt_tokens")


def test_a_running_total_is_asked_about(tmp_path: Path) -> None:
    found = log(tmp_path, f"time_s,{NAMES}", [(i, 100 * (i + 1), 100) for i in range(60)])
    assert any("a running total" in notice for notice in found.notices)


@pytest.mark.parametrize("secret", ["someone@example.com", "sk-1234567890abcdef", "+49 30 1234567x", "hunter2"])
def test_a_word_that_may_be_a_key_or_an_address_is_not_quoted(tmp_path: Path, secret: str) -> None:
    with pytest.raises(TraceError) as failed:
        log(tmp_path, f"time_s,{NAMES}", [(1, 300, 100), (2, secret, 100)])
    assert secret not in str(failed.value) and f"a text of {len(secret)} characters" in str(failed.value)


def test_reasoning_tokens_that_stand_apart_are_counted(tmp_path: Path) -> None:
    header = "timestamp,prompt_tokens,output_tokens,reasoning_tokens"
    apart = log(tmp_path, header, [(t, p, 5, o + 5) for t, p, o in ROWS])
    assert apart.mean_output == pytest.approx(10 + np.mean([o for _, _, o in ROWS]))
    assert "'reasoning_tokens' is added to 'output_tokens'" in apart.notices[0]
    assert the_requests(log(tmp_path, header, [(t, p, o, o // 2) for t, p, o in ROWS]))  # a part of the output


def some_notice(found: Any, said: str) -> bool:
    return any(said in notice for notice in found.notices)


def test_a_request_that_is_there_twice_or_in_chunks_is_asked_about(tmp_path: Path) -> None:
    twice = log(tmp_path, f"timestamp,{NAMES}", [row for row in ROWS for _ in (0, 1)])
    assert some_notice(twice, f"{len(ROWS)} of {2 * len(ROWS)} rows are the same as the row before them")
    chunks = [(t + i / 50, p, i + 1) for t, p, _ in ROWS[::10] for i in range(10)]
    assert some_notice(log(tmp_path, f"timestamp,{NAMES}", sorted(chunks)), "chunks of streamed answers?")
    alike = [(t, 500, 100) for t, _, _ in ROWS]  # a benchmark's requests are alike
    assert log(tmp_path, f"timestamp,{NAMES}", alike).notices == ()
    growing = [(t, 500, o) for t, o in zip(TIMES.tolist(), range(5, 5 + len(ROWS)), strict=True)]
    assert log(tmp_path, f"timestamp,{NAMES}", growing).notices == ()


@pytest.mark.parametrize(("copies", "falls"), [(2, 1), (10, 9)])
def test_a_clock_that_starts_anew_is_asked_about(tmp_path: Path, copies: int, falls: int) -> None:
    said = f"the times fall back and rise again, {falls} times"
    assert some_notice(log(tmp_path, f"timestamp,{NAMES}", [*ROWS] * copies), said)
    late = [ROWS[1], ROWS[0], *ROWS[2:]]  # two rows in another order
    assert not some_notice(log(tmp_path, f"timestamp,{NAMES}", late), "clock")
    stamped = [(1772359200 + t, p, o) for t, p, o in [*ROWS] * 2]  # two files of one time are one log
    assert not some_notice(log(tmp_path, f"timestamp,{NAMES}", stamped), "clock")


@pytest.mark.parametrize("step", [1, 3, 60])
def test_times_in_coarse_steps_are_said_to_be_arrivals_at_once(tmp_path: Path, step: int) -> None:
    rows = [(i // 8 * step, p, o) for i, (_, p, o) in enumerate(ROWS)]
    said = f"times are written in steps of {step} s: the requests of one step, "
    assert some_notice(log(tmp_path, f"timestamp,{NAMES}", rows, unit="s"), said)
    assert not some_notice(log(tmp_path, f"timestamp,{NAMES}", [(i * step, *r[1:]) for i, r in enumerate(ROWS)]), said)


def test_times_since_1970_in_two_units_are_refused(tmp_path: Path) -> None:
    rows = [((1772359200 + t) * (1 if i < 150 else 1000), p, o) for i, (t, p, o) in enumerate(ROWS)]
    with pytest.raises(TraceError, match="in several units: 150 in seconds, 150 in milliseconds; bring them into one"):
        log(tmp_path, f"timestamp,{NAMES}", rows)


def test_a_unit_that_contradicts_the_columns_name_is_said(tmp_path: Path) -> None:
    rows = [(round(1000 * t), p, o) for t, p, o in ROWS]
    found = log(tmp_path, f"timestamp_ms,{NAMES}", rows, unit="s")
    assert found.notices[0] == "unit s is taken, though 'timestamp_ms' says milliseconds"
    assert log(tmp_path, f"timestamp_ms,{NAMES}", rows, unit="ms").notices == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": "prompt=prompt_tokens,output=prompt_tokens"}, "'prompt_tokens' is given twice"),
        ({"columns": "prompt=prompt_tokens+prompt_tokens"}, "a column is counted once"),
        ({"columns": {"time": 3}}, "time is 3; must be the name of a column or several names"),
        ({"columns": {"time": ()}}, "must be the name of a column"),
        ({"start": "40", "end": "20"}, "start = '40' is not before end = '20'"),
        ({"start": "2026-03-02", "end": "2026-03-01"}, "nothing lies between"),
        ({"last": 0}, "last = 0: must be above 0"),
    ],
)
def test_options_that_leave_nothing_or_count_twice_are_refused(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        log(tmp_path, f"timestamp,{NAMES}", ROWS, **options)
