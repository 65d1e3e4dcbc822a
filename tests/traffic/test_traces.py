"""Request logs: read under their usual names, put right with a notice, refused with the row's number."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.traffic.request_log import TraceError, load_trace
from tests.tools.public_logs import require_log

HEADER = "timestamp,prompt_tokens,output_tokens\n"


def log(tmp_path, text, name="log.csv", **options):
    path = tmp_path / name
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_trace(path, **options)


def test_requests_are_counted_by_second_with_their_mean_lengths(tmp_path):
    found = log(tmp_path, HEADER + "0.1,10,1\n0.9,30,3\n2.5,100,7\n")
    assert found.counts.tolist() == [2, 0, 1]
    assert found.prompts.tolist() == pytest.approx([20, 140 / 3, 100])  # an empty second has the log's mean
    assert found.outputs.tolist() == pytest.approx([2, 11 / 3, 7])
    assert (found.requests, found.seconds, found.mean_prompt) == (3, 3, pytest.approx(140 / 3))
    assert found.notices == ()


@pytest.mark.parametrize(
    "header",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens", "arrived_at,num_prefill_tokens,num_decode_tokens",
        "Timestamp;Request tokens;Response tokens", "time\tinput_length\toutput_length", "arrival_time,isl,osl",
    ],
)  # fmt: skip
def test_usual_names_and_separators_are_found(tmp_path, header):
    separator = next(c for c in ",;\t" if c in header)
    rows = "\n".join(separator.join(row) for row in (("0", "5", "6"), ("1", "7", "8")))
    found = log(tmp_path, f"{header}\n{rows}\n")
    assert found.prompts.tolist() == [5, 7] and found.outputs.tolist() == [6, 8]


def test_json_lines_and_dates(tmp_path):
    lines = (
        '{"timestamp": "2023-11-16 18:15:46.6805900", "input_length": 5, "output_length": 6, "hash_ids": [1]}\n\n'
        '{"timestamp": "2023-11-16 18:15:48.1", "input_length": 7, "output_length": 8}\n'
    )
    found = log(tmp_path, lines, "log.jsonl")
    assert found.counts.tolist() == [1, 0, 1] and found.prompts[2] == 7


def test_rows_out_of_order_are_sorted_with_a_notice(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "5,1,1\n2,2,2\n3.5,3,3\n")
    with pytest.warns(UserWarning, match="2 of 3 rows are earlier than a row before them; sorted by time"):
        found = load_trace(path)
    ordered = log(tmp_path, HEADER + "2,2,2\n3.5,3,3\n5,1,1\n", "ordered.csv")
    assert found == ordered and hash(found) == hash(ordered)


def test_zero_tokens_count_as_one_with_a_notice(tmp_path):
    found = log(tmp_path, HEADER + "0,0,5\n0,3,0\n")
    assert found.prompts[0] == 2 and "2 of 2 rows have 0 tokens, counted as 1" in found.notices[0]


@pytest.mark.slow
def test_prompts_beyond_what_can_be_observed_are_counted_in_a_notice(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "0,8192,5\n0.5,8193,5\n2,100000,5\n")
    with pytest.warns(
        UserWarning, match="2 of 3 rows have prompts above 8192 tokens: a second whose mean prompt is above"
    ):
        found = load_trace(path)
    assert found.prompts.tolist() == pytest.approx([8192.5, 116385 / 3, 100000])  # as they are: the step clamps them
    env, params = ig.make(4, trace=found)
    seen = [env.step(None, env.reset_seed(0, params)[1], ig.ServeAction(), params)[0].mean_prompt_len]
    assert float(seen[0]) == 8192


@pytest.mark.parametrize(
    ("header", "times", "seconds"),
    [
        ("timestamp", [0, 300, 600, 3000, 30000], 31),  # as seconds it would be an absurd rate
        ("timestamp", [1.7e12 + x for x in (0, 300, 4000)], 5),
        ("timestamp", [1.7e9 + x for x in (0, 3, 4)], 5),
        ("arrival_time_ms", [0, 300, 600, 4000], 5),
        ("start_time_ns", [0, 1e9, 4e9], 5),
        ("arrival_s", [0, 300, 600], 601),
    ],
)
def test_the_unit_of_time_is_found(tmp_path, header, times, seconds):
    rows = "\n".join(f"{t:.0f},5,6" for t in times)
    assert log(tmp_path, f"{header},prompt_tokens,output_tokens\n{rows}\n").seconds == seconds


def test_the_unit_may_be_given(tmp_path):
    assert log(tmp_path, HEADER + "0,1,1\n600,1,1\n", unit="s").seconds == 601
    with pytest.raises(ValueError, match="unit = 'h': must be one of s, ms, us, ns"):
        log(tmp_path, HEADER + "0,1,1\n", unit="h")


def test_an_absurd_rate_is_refused(tmp_path):
    rows = "\n".join(f"{i * 1e-7:.7f},5,6" for i in range(150_000))
    with pytest.raises(TraceError, match=r"150000 requests in 1 s are 1.5e\+05 requests/s, which no log has.*unit='s'"):
        log(tmp_path, HEADER + rows)
    with pytest.raises(TraceError, match=r"line 3: timestamp is 1e\+?1?0.*days from the first row|line 3: timestamp"):
        log(tmp_path, HEADER + "1,2,3\n1e10,4,5\n", unit="s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (HEADER, "no rows"),
        ("a,b\n1,2\n", "no column of time among 'a', 'b'"),
        ("time,prompt_tokens\n1,2\n", "no column of output tokens"),
        (HEADER + "1,2,3\n2,-4,5\n", r"line 3: prompt_tokens is '-4'; wanted: a whole number of tokens from 0"),
        (HEADER + "1,2,3\n2,,5\n", "line 3: prompt_tokens is nothing"),
        (HEADER + "1,2,3\n2,4,nan\n", "line 3: output_tokens is "),
        (HEADER + "1,2,3\n2,inf,5\n", "line 3: prompt_tokens is 'inf'"),
        (HEADER + "1,2,3\n2,abc,5\n", "line 3: prompt_tokens is 'abc'"),
        (HEADER + "1,2,3\nsoon,4,5\n", "line 3: timestamp is 'soon'"),
        (HEADER + "1,2,3\n,4,5\n", "line 3: timestamp is nothing"),
        (HEADER + "1,2,3\n2,4\n", "line 3: 2 cells where the header has 3"),
        ("\x00\x01\x02", "no names of columns"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 2}\n{"timestamp": 1, "input_length": 1}\n',
         "line 2: output_length is nothing"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 2}\n{oops\n', "line 2: not JSON"),
        ('{"timestamp": 0, "input_length": 1, "output_length": -2}\n', "line 1: output_length is '-2'"),
    ],
)  # fmt: skip
def test_bad_logs_are_refused_with_the_row(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        log(tmp_path, text)


def test_a_bad_row_far_into_the_file_is_named(tmp_path):
    rows = "\n".join(f"{i / 10},5,6" for i in range(400_000))
    with pytest.raises(TraceError, match="line 400002: output_tokens is '-1'"):
        log(tmp_path, HEADER + rows + "\n40000,5,-1\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; give a CSV or JSON-lines request log"):
        load_trace(tmp_path / "nothing.csv")


def test_memory_is_bounded_by_the_logs_length_not_its_rows(tmp_path):
    path = tmp_path / "big.csv"
    block = "".join(f"{i / 500},{100 + i % 7},{10 + i % 5}\n" for i in range(250_000))
    with path.open("w") as file:
        file.write(HEADER)
        for _ in range(8):  # 30 MB, 2 million rows, ten minutes long
            file.write(block)
    code = (
        "import resource, sys, warnings; warnings.simplefilter('ignore')\n"
        "from inferencegym_jax.traffic.request_log import load_trace\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "log = load_trace(sys.argv[1])\n"
        "print(log.requests, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root)
    requests, grown_mb = map(int, ran.stdout.split())
    assert requests == 2_000_000 and grown_mb < path.stat().st_size / 1e6


def test_the_public_logs_have_their_published_figures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        azure = load_trace(require_log("AzureLLMInferenceTrace_conv.csv"))
        mooncake = load_trace(require_log("mooncake_conversation_first4000.jsonl"))
    assert azure.requests == azure.counts.sum() == 19366 and azure.seconds in (3502, 3503)
    assert round(azure.mean_prompt) == 1155 and round(azure.mean_output) == 211
    assert mooncake.requests == 4000 and mooncake.rate == pytest.approx(3.07, abs=0.02)
    assert np.isfinite(mooncake.rows).all()
