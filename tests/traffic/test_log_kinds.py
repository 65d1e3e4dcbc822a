"""Request logs as people have them: however packed, separated, encoded and dated, the same requests are read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import threading
import warnings
import zipfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import inferencegym_jax as ig
from inferencegym_jax.traffic import log_json
from inferencegym_jax.traffic.request_log import TraceError, load_trace

COUNT = 300
RNG = np.random.default_rng(3)
TIMES = np.sort(RNG.uniform(0, 60, COUNT)).round(3)  # 5 requests/s
PROMPTS, OUTPUTS = RNG.integers(20, 1500, COUNT).tolist(), RNG.integers(5, 300, COUNT).tolist()
ROWS = list(zip(TIMES.tolist(), PROMPTS, OUTPUTS, strict=True))
WANTED = ig.RequestLog.from_arrays(TIMES, PROMPTS, OUTPUTS)
START = datetime(2026, 3, 1, 10, tzinfo=UTC)
DATES = [START + timedelta(seconds=t) for t in TIMES.tolist()]


def read(path: Path | str, **options: Any) -> ig.RequestLog:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_trace(path, **options)


def written(tmp_path: Path, content: str | bytes, name: str = "log.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(header: str = "timestamp,prompt_tokens,completion_tokens", rows: Any = ROWS) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def the_requests(found: ig.RequestLog) -> bool:
    same = [np.array_equal(getattr(found, n), getattr(WANTED, n)) for n in ("counts", "prompts", "outputs")]
    return all(same) and found.requests == COUNT


def zipped(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr("__MACOSX/._log.csv", "x")
    return packed.getvalue()


def zstd(text: str) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as out:
        out.write(text.encode())
    return packed.getvalue().to_pybytes()


CSV = table()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(CSV.encode(), mtime=0), bz2.compress(CSV.encode()), lzma.compress(CSV.encode()),
        zipped(**{"log.csv": CSV}),
        zstd(CSV), CSV.encode("utf-16"), CSV.encode("utf-16-le"), CSV.encode("utf-16-be"), CSV.encode("utf-32"),
        CSV.encode("utf-8-sig"), gzip.compress(CSV.encode("utf-16"), mtime=0),
        CSV.replace("\n", "\r\n").encode(), CSV.replace("\n", "\r").encode(),
    ],
    ids="gzip bzip2 xz zip zstd utf16 utf16le utf16be utf32 bom gzip-utf16 crlf cr".split(),
)  # fmt: skip
def test_packing_and_encoding_do_not_matter(tmp_path: Path, content: bytes) -> None:
    found = read(written(tmp_path, content, "log"))
    assert the_requests(found) and found.notices == ()


@pytest.mark.parametrize("late", [False, True])
def test_a_column_in_latin_1_is_of_no_account(tmp_path: Path, late: bool) -> None:
    names = ["José"] * COUNT if not late else ["Ann"] * (COUNT - 1) + ["José"]
    rows = [(t, name, p, o) for (t, p, o), name in zip(ROWS, names, strict=True)]
    text = table("timestamp,näme,prompt_tokens,completion_tokens", rows)
    assert the_requests(read(written(tmp_path, text.encode("latin-1"))))


@pytest.mark.parametrize(
    "text",
    [
        "\n\n" + CSV, "sep=;\n" + CSV.replace(",", ";"), CSV.replace(",", "\t"), CSV.replace(",", "|"),
        CSV.replace(",", ";").replace(".", ","), "# exported by a tool, today\n#\n" + CSV, "#" + CSV,
        CSV.replace("\n", ",\n").replace("tokens,\n", "tokens\n"),
        table('"note, free","timestamp","prompt_tokens","completion_tokens"', [('"a, b"', *row) for row in ROWS]),
        table("Timestamp [s],Prompt Tokens,Completion Tokens"),
    ],
    ids="blank sep= tab bar decimal-comma comment #header trailing quoted-comma spaces".split(),
)  # fmt: skip
def test_headers_and_separators_as_spreadsheets_write_them(tmp_path: Path, text: str) -> None:
    assert the_requests(read(written(tmp_path, text)))


@pytest.mark.parametrize("header", ["Timestamp (ms)", "time_ms", "startTimeMs", "arrival ms", "timestampms"])
def test_a_unit_in_the_columns_name_is_obeyed(tmp_path: Path, header: str) -> None:
    text = table(f"{header},prompt_tokens,output_tokens", [(round(1000 * t), p, o) for t, p, o in ROWS])
    found = read(written(tmp_path, text))
    assert the_requests(found) and found.notices == ()


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S.%f UTC", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S.%f+00:00", "%Y-%m-%d %H:%M:%S.%f +0000",
        "%Y/%m/%d %H:%M:%S.%f", '"%Y-%m-%d %H:%M:%S,%f"', "%d/%b/%Y:%H:%M:%S +0000", '"%a, %d %b %Y %H:%M:%S GMT"',
    ],
)  # fmt: skip
def test_dates_as_tools_write_them(tmp_path: Path, form: str) -> None:
    rows = [(date.strftime(form), p, o) for date, (_, p, o) in zip(DATES, ROWS, strict=True)]
    found = read(written(tmp_path, table("created_at,input_tokens,output_tokens", rows)))
    assert np.array_equal(found.counts, WANTED.counts) and found.start_s == START.timestamp()


def test_offsets_of_dates_may_change_within_a_log(tmp_path: Path) -> None:
    zones = [timezone(timedelta(hours=1 + (i >= 150))) for i in range(COUNT)]
    rows = [(d.astimezone(z).isoformat(), p, o) for d, z, (_, p, o) in zip(DATES, zones, ROWS, strict=True)]
    assert the_requests(read(written(tmp_path, table("created_at,input_tokens,output_tokens", rows))))


def objects(**fields: Any) -> list[dict[str, Any]]:
    """A row a request; a field is a constant or a function of (date, prompt, output)."""
    return [
        {
            name: value(f"{date:%Y-%m-%dT%H:%M:%S.%f}Z", p, o) if callable(value) else value
            for name, value in fields.items()
        }
        for date, (_, p, o) in zip(DATES, ROWS, strict=True)
    ]


def nanoseconds(date: str) -> str:
    return str(round(datetime.fromisoformat(date).timestamp() * 1e6) * 1000)


def lines(rows: list[dict[str, Any]], between: str = "\n") -> str:
    return between.join(json.dumps(row) for row in rows)


def attribute(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


LITELLM = objects(
    request_id="a", startTime=lambda d, p, o: d, endTime="2026-03-01T11:00:00Z", prompt_tokens=lambda d, p, o: p,
    completion_tokens=lambda d, p, o: o, total_tokens=lambda d, p, o: p + o, messages="{}", response="{}",
    metadata=lambda d, p, o: {"usage_object": {"prompt_tokens": p, "completion_tokens": o}},
)  # fmt: skip
LANGFUSE = objects(
    id="o", startTime=lambda d, p, o: d, createdAt="2026-03-02T00:00:00Z", input="hello", output="hi",
    promptTokens=lambda d, p, o: p, completionTokens=lambda d, p, o: o,
)  # fmt: skip
LANGFUSE_USAGE = objects(
    startTime=lambda d, p, o: d, input=[{"role": "user", "content": "hello"}], output={"content": "hi"},
    usage=lambda d, p, o: {"input": p, "output": o, "total": p + o, "unit": "TOKENS"},
)  # fmt: skip
HELICONE = objects(
    request_created_at=lambda d, p, o: d, response_created_at="2026-03-01T12:00:00Z", delay_ms=12,
    prompt_tokens=lambda d, p, o: p, completion_tokens=lambda d, p, o: o, request_body={"messages": []},
)  # fmt: skip
OPENTELEMETRY = objects(
    name="chat", startTimeUnixNano=lambda d, p, o: nanoseconds(d), endTimeUnixNano="1",
    attributes=lambda d, p, o: [
        attribute("gen_ai.usage.input_tokens", {"intValue": str(p)}),
        attribute("gen_ai.usage.cache_read.input_tokens", {"intValue": "3"}),
        attribute("gen_ai.usage.output_tokens", {"intValue": str(o)}),
    ],
)  # fmt: skip
SPANS = [*OPENTELEMETRY, {"name": "http", "startTimeUnixNano": nanoseconds("2026-03-01T10:00:01Z"), "attributes": []}]
OPENAI = objects(
    timestamp=lambda d, p, o: d, choices=[{"message": {"role": "assistant", "content": "hi"}}],
    usage=lambda d, p, o: {
        "prompt_tokens": p, "completion_tokens": o, "total_tokens": p + o, "prompt_tokens_details": {"cached_tokens": 2}
    },
)  # fmt: skip
NGINX = objects(
    time_iso8601=lambda d, p, o: d, remote_addr="10.0.0.9", request_time=lambda d, p, o: o / 50, status=200,
    prompt_tokens=lambda d, p, o: p, completion_tokens=lambda d, p, o: o,
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        lines(LITELLM), json.dumps(LITELLM), json.dumps({"data": LITELLM, "total": 300}),
        json.dumps(LANGFUSE, indent=2), json.dumps(LANGFUSE), json.dumps({"data": LANGFUSE_USAGE, "meta": {"page": 1}}),
        lines(HELICONE), lines(OPENAI, "\n\n"), "\n".join(json.dumps(row, indent=1) for row in OPENAI),
        lines(OPENTELEMETRY), json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": SPANS}]}]}), lines(NGINX),
    ],
    ids="litellm litellm-array litellm-wrapped langfuse langfuse-line langfuse-usage helicone openai openai-indented "
    "otel otlp nginx".split(),
)  # fmt: skip
def test_exports_of_gateways_and_tracers(tmp_path: Path, text: str) -> None:
    assert the_requests(read(written(tmp_path, text, "export")))


def test_columns_and_split_frames_in_json(tmp_path: Path) -> None:
    names, columns = ("timestamp", "prompt_tokens", "output_tokens"), list(zip(*ROWS, strict=True))
    lists = dict(zip(names, map(list, columns), strict=True))
    by_index = {name: dict(zip(map(str, range(COUNT)), column, strict=True)) for name, column in lists.items()}
    split = {"columns": list(names), "index": list(range(COUNT)), "data": [list(row) for row in ROWS]}
    for frame in (lists, by_index, split):
        assert the_requests(read(written(tmp_path, json.dumps(frame), "frame.json")))


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", None),  # BurstGPT
        ("TIMESTAMP,x,ContextTokens,GeneratedTokens,y,z", None),  # Azure, Splitwise
        ("arrived_at,x,num_prefill_tokens,num_decode_tokens,pd_ratio,z", None),  # Vidur
        ("timestamp,x,input_length,output_length,hash_ids,z", "ms"),  # Mooncake
        ("arrival_timestamp,x,prompt_size,token_size,y,z", None),  # Splitwise's simulator
    ],
)
def test_public_traces(tmp_path: Path, header: str, unit: str | None) -> None:
    scale = 1000 if unit else 1
    rows = [(round(t * scale) if unit else t, "m", p, o, p + o, "log") for t, p, o in ROWS]
    assert the_requests(read(written(tmp_path, table(header, rows))))


def test_parquet_with_dates_and_nested_usage(tmp_path: Path) -> None:
    usage = pa.array([{"prompt_tokens": p, "completion_tokens": o} for _, p, o in ROWS])
    zoned = pa.array([d.replace(tzinfo=None) for d in DATES], pa.timestamp("us", "UTC"))
    for dates in (zoned, zoned.cast(pa.timestamp("us"))):
        parquet.write_table(
            pa.table({"created_at": dates, "usage": usage}), tmp_path / "log.parquet", row_group_size=64
        )
        assert the_requests(read(tmp_path / "log.parquet"))
    flat = pa.table({"ts": TIMES, "input_tokens": PROMPTS, "output_tokens": [*OUTPUTS[:-1], -1]})
    parquet.write_table(flat, tmp_path / "log.parquet", row_group_size=64)
    with pytest.raises(TraceError, match=rf"log.parquet row {COUNT}: output_tokens is '-1'"):
        read(tmp_path / "log.parquet")


def test_a_pipe_is_read() -> None:
    out, into = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(into, CSV.encode()), os.close(into)))
    thread.start()
    found = read(f"/dev/fd/{out}")
    thread.join()
    os.close(out)
    assert the_requests(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(**{"a.csv": CSV, "b.csv": CSV}), r"an archive of 2 files \('a.csv', 'b.csv'\); wanted: one log"),
        (gzip.compress(CSV.encode(), mtime=0)[:900], "breaks off or is damaged"),
        (zipped(**{"[Content_Types].xml": "x"}), "an Excel workbook; save it as CSV"),
        (b"SQLite format 3\x00" + bytes(50), "an SQLite database; export its table as CSV"),
        (bytes(range(64)) * 9, "not a text file"),
        (CSV.split("\n", 1)[1], "line 1: numbers where the names of the columns should stand"),
        (json.dumps(LITELLM)[:-20], "line 1: not JSON"),
        (json.dumps(LITELLM)[:-1], "the array is not closed"),
        (b"\xff\xfe", "the file is empty"),
        (gzip.compress(b" \n", mtime=0), "the file is empty"),
    ],
)  # fmt: skip
def test_files_that_are_no_logs_are_called_what_they_are(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read(written(tmp_path, content, "log"))


def long_rows(count: int) -> list[str]:
    """Rows of about 700 bytes whose third cell holds a quoted line break."""
    note = '"line one\nline two, with ""quotes"" ' + "x" * 650 + '"'
    return [f"{i * 0.02:.2f},{20 + i % 900},{note},{5 + i % 90}" for i in range(count)]


HEADER = "timestamp,prompt_tokens,note,output_tokens"
BLOCKS = 8000  # rows: 5.5 MB, more than one block


def test_quoted_line_breaks_at_any_size(tmp_path: Path) -> None:
    found = read(written(tmp_path, "\n".join([HEADER, *long_rows(BLOCKS)])))
    assert found.requests == BLOCKS and found.counts.tolist() == [50] * 160
    assert found.mean_output == pytest.approx(5 + np.mean(np.arange(BLOCKS) % 90))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('9,abc,"x\ny",3', f"line {2 + 2 * 7000}: prompt_tokens is 'abc'"),
        ("9,3", f"line {2 + 2 * 7000}: 2 cells where the header has 4"),
        ('9,3,"not closed,3', f"line {2 + 2 * 7000}: |a quotation mark is opened and not closed"),
        ('9,"what did you write to me?",a,3', "prompt_tokens is a text of 25 characters"),
        ("2026-03-01T10:00:00Z,3,a,3", f"line {2 + 2 * 7000}: timestamp is '2026-03-01T10:00:00Z'; wanted: numbers"),
    ],
)
def test_a_bad_row_after_line_breaks_is_named_by_its_line(tmp_path: Path, row: str, said: str) -> None:
    rows = long_rows(BLOCKS)
    path = written(tmp_path, "\n".join([HEADER, *rows[:7000], row, *rows[7000:]]))
    with pytest.raises(TraceError, match=said.replace("?", r"\?")) as error:
        read(path)
    assert len(str(error.value)) < 250


LINE = '{"id": "a", "at": {"ts": %s}, "usage": {"prompt_tokens": %s, "completion_tokens": 7}, "m": [{"role": "u"}]}'


def lines_with(odd: str | None, at: int = 300, count: int = 310) -> str:
    """Plain lines, one of them odd."""
    lines = [LINE % (i / 10, 10 + i % 50) for i in range(count)]
    if odd is not None:
        lines[at] = odd
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (LINE % ("30", "10"), None),  # a whole number among decimals
        (LINE % ("30.5", "10.0"), None),  # a decimal among whole numbers
        ('{"at":\n {"ts": 30.0}, "usage": {"prompt_tokens": 10, "completion_tokens": 7}}', None),  # over two lines
        (LINE % ("30.5", '"12"'), None),  # a number in quotation marks
        (LINE % ("30.5", "10.5"), "line 301: usage.prompt_tokens is '10.5'"),
        (LINE % ("30.5", "null"), "line 301: usage.prompt_tokens is nothing"),
        (LINE % ("NaN", "10"), "line 301: at.ts is 'nan'"),
        (LINE % ('"soon"', "10"), "line 301: at.ts is 'soon'"),
        (LINE % ("30.5", "-3"), "line 301: usage.prompt_tokens is '-3'"),
        ('{"at": {"ts": 1}, "usage": {"prompt_tokens": 1, "prompt_tokens": 2}}', "'prompt_tokens' is there twice"),
        ("[1, 2]", "line 301: got an array"),
        (LINE % ("1", "1") + " x", "line 301: not JSON"),
        (LINE % ("1", "1") + ",", None),  # commas between rows
        ("", None),
    ],
)
def test_a_late_odd_line_of_json_is_read_or_said_as_an_early_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, said: str | None
):
    monkeypatch.setattr(log_json, "SAMPLE_ROWS", 50)
    monkeypatch.setattr(log_json, "BLOCK_BYTES", 4096)
    path = tmp_path / "log.jsonl"
    path.write_text(lines_with(odd))
    if said is not None:
        with pytest.raises(TraceError, match=re.escape(said)):
            load_trace(path, unit="s")
        return
    log = load_trace(path, unit="s")
    assert log.requests == 310 - (odd == "")
    array = tmp_path / "log.json"  # an array is read a value at a time
    rows = [line for line in lines_with(odd).splitlines() if line]
    text = "\n".join(rows).replace("}]}\n", "}]},\n").replace("}}\n", "}},\n").replace(",,", ",")
    array.write_text(f"[{text}]")
    assert load_trace(array, unit="s").digest == log.digest
