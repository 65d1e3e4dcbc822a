"""A profile from the TPOT columns of a table that states none: exact at its nodes, and clear about what is missing."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import inferencegym_jax as ig
from inferencegym_jax.table import profile_of
from inferencegym_jax.table.latency_table import METRICS, PROMPT_LENGTHS, table_from_columns

MEMORY = {"memory_gb": "80", "weights_gb": "16.06", "kv_bytes_per_token": "131072"}
OUTPUT = 200


def decode_ms(n, prompt):
    """An engine that is easy to take apart: 8 ms, 0.05 ms a request and 0.002 ms for each 1,000 tokens of context."""
    return 8.0 + 0.05 * n + 2e-6 * n * (prompt + OUTPUT / 2)


def prompt_ms(prompt):
    return 0.04 * prompt + 1e-6 * prompt**2


def table(batches=(1, 8, 64), buckets=(0, 3, 5), disagg=(0,), **metadata):
    rows = []
    for n, bucket, d in itertools.product(batches, buckets, disagg):
        prompt = PROMPT_LENGTHS[bucket]
        tpot = decode_ms(n, prompt) + (0 if d else n / OUTPUT * prompt_ms(prompt))
        first = prompt_ms(prompt) + (0 if d else tpot)
        rows.append((n, bucket, d, first, 2 * first, tpot, 1000 * n / tpot, 20.0, tpot / n))
    names = ("batch_size", "prompt_len_bucket", "prefill_disagg", *METRICS)
    return table_from_columns(
        dict(zip(names, np.array(rows).T, strict=True)), {"reference_output_length": str(OUTPUT), **metadata}, "mine"
    )


def curve(x, nodes, values):
    """Linear between nodes, along the last segment beyond."""
    if x > nodes[-1]:
        return values[-1] + (values[-1] - values[-2]) / (nodes[-1] - nodes[-2]) * (x - nodes[-1])
    return np.interp(x, nodes, values)


def iteration(profile, n, context, chunk=0, tier=0):
    along = [curve(context, profile.decode_context, row) for row in profile.decode_attention_ms]
    return (
        curve(n + chunk, profile.products_tokens, profile.products_ms[tier])
        + curve(n, profile.decode_sequences, along)
        + curve(chunk, profile.prefill_tokens, profile.prefill_attention_ms)
    )


WAYS = {
    "both columns": {"disagg": (0, 1)},
    "prefill_ms": {"prefill_ms": json.dumps([prompt_ms(PROMPT_LENGTHS[b]) for b in (0, 3, 5)])},
    "disaggregated only": {"disagg": (1,)},
}


@pytest.mark.parametrize("way", WAYS)
def test_iterations_come_out_as_they_went_in(way):
    profile = profile_of(table(**MEMORY, **WAYS[way]))
    at = 64 if way == "both columns" else 1
    for n, bucket in itertools.product((1, 8, 64), (0, 3, 5)):
        prompt = PROMPT_LENGTHS[bucket]
        context = prompt + OUTPUT / 2
        alone = iteration(profile, n, context)
        assert alone == pytest.approx(decode_ms(n, prompt), rel=1e-5)
        if n == at:
            added = iteration(profile, n, context, prompt) - alone
            assert added == pytest.approx(prompt_ms(prompt), rel=1e-4)


def test_a_lone_requests_ttft_says_what_a_prompt_costs():
    profile = profile_of(table(**MEMORY))
    for bucket in (0, 3, 5):
        prompt = PROMPT_LENGTHS[bucket]
        added = iteration(profile, 1, 100, prompt) - iteration(profile, 1, 100)
        assert added == pytest.approx(prompt_ms(prompt), rel=1e-4)


@pytest.mark.parametrize(
    "axes", [{"batches": (16,), "disagg": (0, 1)}, {"buckets": (2,)}, {"batches": (1,), "buckets": (0,)}]
)
def test_an_axis_of_one_value_is_enough(axes):
    profile = profile_of(table(**MEMORY, **axes))
    n = axes.get("batches", (1,))[0]
    prompt = PROMPT_LENGTHS[axes.get("buckets", (0,))[0]]
    assert iteration(profile, n, prompt + OUTPUT / 2) == pytest.approx(decode_ms(n, prompt), rel=1e-5)
    assert len(profile.decode_sequences) >= 2 and len(profile.decode_context) >= 2


def test_noise_in_a_measured_table_does_not_make_more_work_faster():
    source = table(**MEMORY, **WAYS["prefill_ms"])
    rng = np.random.default_rng(0)
    noisy = source.values * rng.lognormal(0, 0.2, source.values.shape).astype(np.float32)
    profile = profile_of(dataclasses.replace(source, values=noisy))  # refused if any curve fell
    assert (np.diff(profile.prefill_attention_ms) >= 0).all()


def test_the_shipped_table_without_its_profile_gives_nearly_the_same_iterations():
    """In FP16 and INT4; the profile's INT8 pays for conversions that the table's rows leave out."""
    shipped = ig.load_table()
    assert shipped.engine is not None
    stated = {"memory_gb": 80, "weights_gb": [16.06, 9.08, 5.7]}
    derived = profile_of(dataclasses.replace(shipped, engine=None), stated)
    assert derived.pool_tokens(0) == pytest.approx(shipped.engine.pool_tokens(0))
    for tier, n, prompt in itertools.product((0, 2), (1, 8, 32, 100, 256), (64, 200, 512, 1024, 1900)):
        context = prompt + 64
        head = curve(n, shipped.engine.head_tokens, shipped.engine.head_ms)
        one, other = iteration(shipped.engine, n, context, tier=tier) + head, iteration(derived, n, context, tier=tier)
        assert other == pytest.approx(one, rel=0.01 if n in (1, 8, 32, 256) and tier == 0 else 0.08)
        added = iteration(shipped.engine, n, context, prompt, tier) + head - one
        assert iteration(derived, n, context, prompt, tier) - other == pytest.approx(added, abs=1.5 + 0.2 * added)


@pytest.mark.parametrize("missing", MEMORY)
def test_what_the_pool_lacks_is_named(missing):
    stated = {key: value for key, value in MEMORY.items() if key != missing}
    with pytest.raises(ig.TableError, match=rf"mine: open-loop tasks need .* metadata {missing}: "):
        profile_of(table(**stated))
    assert profile_of(table(**stated), {missing: float(MEMORY[missing])}).pool_tokens(0) > 0


def test_a_pool_in_tokens_stands_for_memory_and_weights():
    profile = profile_of(table(kv_cache_tokens="100000", kv_bytes_per_token="131072", base_memory_gb="18.5"))
    assert profile.pool_tokens(0) == pytest.approx(100_000)
    assert profile.memory_gb == pytest.approx(18.5 + 100_000 * 131072 / 1e9)
    profile = profile_of(table(kv_cache_gb="13.1072", kv_bytes_per_token="131072"))
    assert profile.pool_tokens(0) == pytest.approx(100_000)
    with pytest.raises(ig.TableError, match="metadata kv_bytes_per_token"):
        profile_of(table(kv_cache_tokens="100000"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"memory_gb": "lots"}, "metadata memory_gb = 'lots'; must be a number"),
        ({"kv_bytes_per_token": "0"}, "metadata kv_bytes_per_token = '0'; must be a number above 0"),
        ({"weights_gb": "[1, 2]"}, r"metadata weights_gb = \[1, 2\]; must be 1 numbers, one a quant_tier"),
        ({"memory_gb": "10"}, "memory_gb = 10: the FP16 weights"),
        ({"path_ms": "-1"}, "path_ms = -1: must be a finite number of at least 0"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(metadata, message):
    with pytest.raises(ig.TableError, match=message):
        profile_of(table(**(MEMORY | metadata)))


def test_a_table_that_does_not_say_what_a_prompt_costs_is_refused():
    with pytest.raises(ig.TableError, match="nothing says what a prompt costs; add the metadata prefill_ms"):
        profile_of(table(batches=(8, 64), **MEMORY))


def test_tables_of_other_memory_are_other_tables():
    small, large = table(**MEMORY), table(**MEMORY | {"memory_gb": "141"})
    assert small != large and small == table(**MEMORY)
    assert profile_of(small).pool_tokens(0) < profile_of(large).pool_tokens(0)
    with pytest.raises(ig.TableError, match="speed is unknown; what can be stated of this table is memory_gb"):
        profile_of(small, {"speed": 1})


def test_closed_loop_tasks_need_none_of_it():
    env, params = ig.make(1, table=table(batches=(8, 64)))
    assert env.table.engine is None and float(params.optimal_tps) > 0


def test_a_stated_profile_can_be_overruled():
    shipped = ig.load_table()
    assert shipped.engine is not None and profile_of(shipped) is shipped.engine
    smaller = profile_of(shipped, {"memory_gb": 40.0})
    assert smaller.pool_tokens(0) == pytest.approx(shipped.engine.pool_tokens(0, 40.0))
    with pytest.raises(ig.TableError, match="speed is unknown"):
        profile_of(shipped, {"speed": 1})
