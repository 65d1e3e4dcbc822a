"""Logs as today's gateways, tracers and spreadsheets write them, and what only looks like one."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from inferencegym_jax.traffic.request_log import TraceError
from tests.traffic.test_log_kinds import DATES, ROWS, attribute, lines, nanoseconds, read, table, the_requests, written

DATE = [f"{date:%Y-%m-%dT%H:%M:%S.%f}Z" for date in DATES]
TOKENS = "prompt_tokens,output_tokens"
LEFT_OUT = "rows that are no calls of a model and have no tokens are left out"


def rows(form: Any) -> list[Any]:
    """``form(date, prompt, output)`` of every request."""
    return [form(date, prompt, output) for date, (_, prompt, output) in zip(DATE, ROWS, strict=True)]


def quoted(value: object) -> str:
    return '"' + str(value).replace('"', '""') + '"'


def span(date: str, prompt: int, output: int, lists: bool = True) -> dict[str, Any]:
    usage = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": output}
    attributes = [attribute(key, {"intValue": str(value)}) for key, value in usage.items()]
    return {"name": "chat", "startTimeUnixNano": nanoseconds(date), "attributes": attributes if lists else usage}


def jaeger(date: str, prompt: int, output: int) -> dict[str, Any]:
    tags = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": output}
    start = int(nanoseconds(date)) // 1000
    return {"spans": [{"startTime": start, "tags": [{"key": key, "value": value} for key, value in tags.items()]}]}


def aiperf(date: str, prompt: int, output: int) -> dict[str, Any]:
    counts = {"input_sequence_length": prompt, "output_sequence_length": output}
    return {
        "metadata": {"request_start_ns": int(nanoseconds(date)), "request_end_ns": 1},
        "metrics": {name: {"value": value, "unit": "tokens"} for name, value in counts.items()},
    }


def usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output}


def langfuse(date: str, prompt: int, output: int) -> dict[str, Any]:
    details = {"input": prompt, "output": output, "total": prompt + output}
    return {"start_time": date, "type": "GENERATION", "input": "hello", "usage_details": details}


READ = {
    "langfuse-blob": lines(rows(langfuse)),
    "langfuse-blob-csv": table(
        "start_time,type,usage_details",
        rows(lambda d, p, o: (d, "GENERATION", quoted(json.dumps(langfuse(d, p, o)["usage_details"])))),
    ),
    "usage-in-a-cell": table("startTime,model,usage", rows(lambda d, p, o: (d, "m", quoted(json.dumps(usage(p, o)))))),
    "a-dict-as-pandas-writes-it": table("startTime,usage", rows(lambda d, p, o: (d, quoted(usage(p, o))))),
    "cloudwatch": table(
        "@timestamp,@message",
        rows(lambda d, p, o: (d, quoted(json.dumps({"inputTokenCount": p, "outputTokenCount": o})))),
    ),
    "jaeger": json.dumps({"data": rows(jaeger)}),
    "tempo": json.dumps({"batches": [{"scopeSpans": [{"spans": rows(span)}]}]}),
    "otlp-a-span-a-line": lines(
        rows(lambda d, p, o: {"resourceSpans": [{"scopeSpans": [{"spans": [span(d, p, o)]}]}]})
    ),
    "otlp-logs": json.dumps(
        {
            "resourceLogs": [
                {"scopeLogs": [{"logRecords": rows(lambda d, p, o: {"timestamp": d} | span(d, p, o))}]},
            ]
        }
    ),
    "aiperf-records": lines(rows(aiperf)),
    "elasticsearch": json.dumps(
        {
            "hits": {
                "total": {"value": 300},
                "hits": rows(lambda d, p, o: {"_source": {"@timestamp": d, "usage": usage(p, o)}}),
            }
        }
    ),
    "openinference": lines(
        rows(lambda d, p, o: {"start_time": d, "llm.token_count.prompt": p, "llm.token_count.completion": o})
    ),
    "day-and-time": table(f"Date,Time,{TOKENS}", rows(lambda d, p, o: (d[:10], d[11:-1], p, o))),
    "basic-iso": table(f"timestamp,{TOKENS}", rows(lambda d, p, o: (d.replace("-", "").replace(":", ""), p, o))),
    "minutes": table(f"time_min,{TOKENS}", [(f"{t / 60:.6f}", p, o) for t, p, o in ROWS]),
    "hours": table(f"Timestamp (hours),{TOKENS}", [(f"{t / 3600:.8f}", p, o) for t, p, o in ROWS]),
    "lengths-beside-tokens": table(
        "timestamp,prompt_length,response_length,input_tokens,output_tokens",
        [(t, 4 * p, 4 * o, p, o) for t, p, o in ROWS],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_exports_of_today_are_read(tmp_path: Path, name: str) -> None:
    assert the_requests(read(written(tmp_path, READ[name], "export")))


def test_am_and_pm(tmp_path: Path) -> None:
    found = read(written(tmp_path, table(f"created_at,{TOKENS}", [(f"{d:%Y-%m-%d %I:%M:%S %p}", 9, 9) for d in DATES])))
    assert found.requests == len(ROWS) and found.start_s == int(DATES[0].timestamp())


def test_minutes_that_the_user_names_are_minutes(tmp_path: Path) -> None:
    text = table(f"clock_minutes,{TOKENS}", [(f"{t / 60:.6f}", p, o) for t, p, o in ROWS])
    assert the_requests(read(written(tmp_path, text), columns="time=clock_minutes"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_where_few_letters_are_latin(tmp_path: Path, encoding: str) -> None:
    text = table(f"timestamp,name,{TOKENS}", [(t, "東京都" * 20, p, o) for t, p, o in ROWS])
    assert the_requests(read(written(tmp_path, text.encode(encoding))))


def test_two_gzip_members_are_one_log(tmp_path: Path) -> None:
    head, _, rest = table(f"timestamp,{TOKENS}").partition("\n")
    assert the_requests(read(written(tmp_path, gzip.compress(f"{head}\n".encode()) + gzip.compress(rest.encode()))))


NO_CALL = {"start_time": DATE[-1], "type": "SPAN", "input": "hello", "usage_details": {}}
OTHER_SPAN = {"startTimeUnixNano": nanoseconds(DATE[3]), "attributes": {"http.method": "GET"}}


@pytest.mark.parametrize(
    "text",
    [
        lines([NO_CALL, *rows(langfuse), NO_CALL]),
        lines([OTHER_SPAN, *rows(lambda d, p, o: span(d, p, o, lists=False)), OTHER_SPAN]),
        table(
            "type,startTime,promptTokens,completionTokens",
            [("SPAN", DATE[0], 0, 0), *rows(lambda d, p, o: ("GENERATION", d, p, o)), ("EVENT", DATE[9], "", "")],
        ),
        table(
            "run_type,start_time,prompt_tokens,completion_tokens",
            [*rows(lambda d, p, o: ("llm", d, p, o)), ("chain", DATE[0], 0, 0), ("tool", DATE[0], 0, 0)],
        ),
    ],
    ids="langfuse-blob otel-lines langfuse-csv langsmith".split(),
)
def test_rows_of_a_trace_that_are_no_calls_are_left_out_and_counted(tmp_path: Path, text: str) -> None:
    found = read(written(tmp_path, text, "export"))
    assert the_requests(found) and any(f"2 {LEFT_OUT}" in notice for notice in found.notices)


def test_a_call_without_tokens_is_no_other_row(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 301: usage_details.input is nothing"):
        read(written(tmp_path, lines([*rows(langfuse), NO_CALL | {"type": "GENERATION"}]), "export"))


@pytest.mark.parametrize(("status", "good", "bad"), [("status_code", 200, 500), ("success", "True", "False")])
def test_a_request_that_failed_without_an_output_is_no_answer_of_one_token(
    tmp_path: Path, status: str, good: Any, bad: Any
) -> None:
    failed = [(t, bad, 300, 0) for t, _, _ in ROWS[:7]]
    text = table(f"timestamp,{status},{TOKENS}", [*failed, *((t, good, p, o) for t, p, o in ROWS)])
    found = read(written(tmp_path, text))
    assert the_requests(found)
    assert f"7 requests that failed ({status}) and have no output are left out" in found.notices


def days(since: float) -> list[tuple[str, int, int]]:
    return [(f"{since + t / 86_400:.9f}", p, o) for t, p, o in ROWS]


def ticks(since: int) -> list[tuple[int, int, int]]:
    return [(since + round(t * 1e7), p, o) for t, p, o in ROWS]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (days(20_513.4), "numbers like 20513.4.*: days since 1970"),
        (days(46_082.4), "a spreadsheet's days since 1900"),
        (ticks(638_760_000_000_000_000), r"\.NET's ticks since the year 1"),
        (ticks(134_000_000_000_000_000), "Windows' file times since 1601"),
        ([(f"{d:%Y%m%d%H%M%S}", 9, 9) for d in DATES], "numbers like 20260301100000: dates in digits"),
        ([(f"{d:%Y%m%d%H%M}", 9, 9) for d in DATES], "dates in digits, whose differences are no times"),
    ],
)
def test_dates_as_numbers_of_no_unit_are_refused(tmp_path: Path, values: list[Any], said: str) -> None:
    with pytest.raises(TraceError, match=said) as failed:
        read(written(tmp_path, table(f"timestamp,{TOKENS}", values)))
    assert "format it as date and time" in str(failed.value)


def archive(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name, text in members.items():
            opened.writestr(name, text)
    return packed.getvalue()


ACCESS = '10.0.0.9 - - [01/Mar/2026:10:00:00 +0000] "POST /v1/chat HTTP/1.1" 200 532 "-" "python, requests"'
ENGINE = "INFO 03-01 10:00:00 [loggers.py:123] Engine 000: Avg prompt throughput: 7 tokens/s, Running: 3 reqs"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive(), "an empty zip archive"),
        (archive(**{"1.jsonl": "{}", "2.jsonl": "{}"}), "an archive of 2 files"),
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "a page in HTML"),
        ('<?xml version="1.0"?><log/>', "this is XML"),
        (table(f"timestamp,{TOKENS}").replace(",", " "), "line 1: no names of columns, or nothing between them"),
        (f"{ACCESS}\n" * 9, "line 1: no names of columns"),
        (f"{ENGINE}\n" * 9, "line 1: no names of columns"),
        ("time=2026-03-01T10:00:00Z prompt_tokens=3 output_tokens=4\n" * 9, "line 1: no names of columns"),
        ("42", "line 1: no names of columns"),
        (table(f"timestamp,{TOKENS}", [(f"{d:%Y-%m-%d %H:%M:%S} PST", 9, 9) for d in DATES]), "not by its name"),
        (
            lines(rows(lambda d, p, o: {"startTime": d, "usage": {"input": p, "output": o, "unit": "CHARACTERS"}})),
            "line 1: usage.unit is 'CHARACTERS'; wanted: tokens",
        ),
        (
            table("timestamp,usage", [*rows(lambda d, p, o: (d, quoted(usage(p, o)))), (DATE[-1], "none")]),
            "line 302: usage.prompt_tokens is nothing",
        ),
    ],
)  # fmt: skip
def test_what_is_no_log_is_called_what_it_is_and_not_quoted(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(TraceError, match=said) as failed:
        read(written(tmp_path, content, "log"))
    assert len(str(failed.value)) < 250 and "10.0.0.9" not in str(failed.value)


@pytest.mark.parametrize("count", [100, 90_000])
def test_a_row_of_another_width_is_named_also_in_latin_1(tmp_path: Path, count: int) -> None:
    rows = "".join(f"{i / 100},Jos\xe9,9,9\n" for i in range(count))
    text = f"timestamp,name,{TOKENS}\n{rows}61,Jos\xe9,3\n62,a,3,4\n"
    with pytest.raises(TraceError, match=f"line {count + 2}: 3 cells where the header has 4"):
        read(written(tmp_path, text.encode("latin-1")))


def test_text_that_breaks_off_or_is_no_text_is_no_crash(tmp_path: Path) -> None:
    text = table(f"timestamp,{TOKENS}")
    with pytest.raises(TraceError, match="breaks off or is damaged"):
        read(written(tmp_path, text.encode("utf-16-le")[:-1]))
    good = lines(rows(lambda d, p, o: {"timestamp": d, "usage": usage(p, o)})).encode()
    with pytest.raises(TraceError, match="line 301: timestamp is a text of 4 characters"):
        bad = b'\n{"timestamp": "\x81\x82ab", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
        read(written(tmp_path, good + bad, "log.jsonl"))
