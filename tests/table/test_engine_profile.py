"""The engine profile: read, checked with field and value named, written again, loaded with its table."""

import copy
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import inferencegym_jax as ig
from inferencegym_jax.table import EngineProfile
from inferencegym_jax.table.latency_table import PROFILE_KEY, data_path, load_table, profile_path
from inferencegym_jax.table.vllm_bench import write_table

SHIPPED = data_path("traces_llama3_8b.engine.json")


@pytest.fixture(scope="module")
def profile() -> EngineProfile:
    return EngineProfile.load(SHIPPED)


def changed(profile, *path, value):
    """The profile's JSON object with one value replaced."""
    content = copy.deepcopy(profile.to_dict())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_the_shipped_table_carries_the_shipped_profile(profile):
    table = ig.load_table()
    assert table.engine == profile and hash(table.engine) == hash(profile)
    assert profile.gpu == "NVIDIA A100-SXM4-80GB" and profile.memory_gb == 80


def test_the_pool_is_memory_less_weights_and_runtime_over_bytes_a_token(profile):
    assert profile.pool_tokens(0) == pytest.approx((80 - 16.06 - 2.5) * 1e9 / 131072)
    assert profile.pool_tokens(0, 40.0) == pytest.approx((40 - 16.06 - 2.5) * 1e9 / 131072)
    pools = [profile.pool_tokens(tier) for tier in range(3)]
    assert pools == sorted(pools)
    assert profile.pool_tokens(0, 81) > profile.pool_tokens(0)


def test_weights_that_do_not_fit_are_refused(profile):
    with pytest.raises(ig.TableError, match=r"memory_gb = 18: the FP16 weights .* must be above 18.56"):
        profile.pool_tokens(0, 18.0)
    assert profile.pool_tokens(1, 18.0) > 0
    with pytest.raises(ig.TableError, match="memory_gb = 10: the FP16 weights"):
        EngineProfile.from_dict(changed(profile, "memory_gb", value=10))
    for bad in (0.0, -1.0, float("nan"), float("inf"), "40"):
        with pytest.raises(ig.TableError, match="memory_gb = .*: must be a finite number above 0"):
            profile.pool_tokens(0, bad)


def test_writing_and_reading_give_the_same_profile_and_bytes(profile):
    again = EngineProfile.from_json(profile.to_json())
    assert again == profile and again.to_json() == profile.to_json() == SHIPPED.read_text()


def test_equality_counts_numbers_and_no_texts(profile):
    renamed = EngineProfile.from_dict(changed(profile, "source", value="elsewhere"))
    assert renamed == profile and hash(renamed) == hash(profile)
    slower = EngineProfile.from_dict(changed(profile, "overhead_ms", value=profile.overhead_ms + 1e-6))
    assert slower != profile and slower.digest != profile.digest


def test_arrays_cannot_be_written(profile):
    with pytest.raises(ValueError, match="read-only"):
        profile.products_ms[0, 0] = 1.0


def test_more_work_never_takes_less_time(profile):
    assert (np.diff(profile.products_ms, axis=1) >= 0).all()
    assert (np.diff(profile.head_ms) >= 0).all()
    assert (np.diff(profile.decode_attention_ms, axis=0) >= 0).all()
    assert (np.diff(profile.decode_attention_ms, axis=1) >= 0).all()
    assert (np.diff(profile.prefill_attention_ms) >= 0).all()
    for lengths in profile.acceptance_lengths.values():
        assert (np.diff(lengths) >= 0).all() and lengths[0] == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "format = 2: must be 1"),
        (("overhead_ms",), -0.1, "overhead_ms = -0.1: must be a finite number of at least 0"),
        (("path_ms",), float("nan"), "path_ms = nan: must be a finite number"),
        (("kv_bytes_per_token",), 0, "kv_bytes_per_token = 0: must be a finite number above 0"),
        (("tokens_per_iteration",), 0, "tokens_per_iteration = 0: must be a whole number of at least 1"),
        (("first_token_extra_iterations",), 0.5, "first_token_extra_iterations = 0.5: must be a whole number"),
        (("draft_share",), "0.1", "draft_share = '0.1': must be a finite number"),
        (("price_per_gpu_hour",), -1, "price_per_gpu_hour = -1: must be a finite number of at least 0 or null"),
        (("weights_gb",), [16.0, 9.0], "weights_gb = .*must be 3 numbers, one for each of FP16, INT8, INT4"),
        (("weights_gb", 1), float("inf"), r"weights_gb\[1\] = inf: must be finite"),
        (("quality_loss", 2), 1.5, "quality_loss = .*: must be from 0 to 1"),
        (("model",), 7, "model = 7: must be text"),
        (("notes",), {"a": 1}, "notes = .*must map fields to text"),
        (("products_ms", "ms", 1, 3), -5.0, r"products_ms.ms\[1, 3\] = -5: must be finite and of at least 0"),
        (("products_ms", "ms", 0, 4), 0.5, r"products_ms.ms\[0, 4\] = 0.5 follows .*; more work must not take less"),
        (("products_ms", "ms", 2), [1.0, 2.0], "products_ms.ms = .*must be 3 x"),
        (("products_ms", "tokens", 2), 1, "products_ms.tokens: 1 follows 2; nodes must rise"),
        (("products_ms",), [1, 2], r"products_ms = \[1, 2\]: must be an object of tokens, ms"),
        (("head_ms", "ms", 0), float("nan"), r"head_ms.ms\[0\] = nan"),
        (("decode_attention_ms", "ms", 5, 6), 0.0, r"decode_attention_ms.ms\[5, 6\] = 0 follows"),
        (("decode_attention_ms", "context"), [], "decode_attention_ms.context = .*must be n numbers"),
        (("prefill_attention_ms", "ms", 0), 0.1, "must start at 0 tokens with 0 ms"),
        (("spec_lengths",), [0, 1, 2], r"spec_lengths = .*must be \[0, 1, 2, 4, 8\]"),
        (("acceptance_lengths",), {}, "acceptance_lengths = {}: must map kinds of traffic"),
        (("acceptance_lengths", "chat"), [1, 1.5, 1.4, 2, 2], r"acceptance_lengths.chat\[2\] = 1.4: must be from 1.5"),
        (("acceptance_lengths", "chat"), [1, 2.5, 2.6, 2.7, 3], r"chat\[1\] = 2.5: must be from 1 .* to 2"),
        (("acceptance_lengths", "chat"), [1.2, 1.5, 1.6, 2, 2], r"chat\[0\] = 1.2: must be 1"),
        (("acceptance_lengths", "chat"), [1, 1.5], "acceptance_lengths.chat = .*must be 5 numbers"),
    ],
)
def test_what_cannot_be_used_is_refused_by_field_and_value(profile, path, value, message):
    with pytest.raises(ig.TableError, match=message):
        EngineProfile.from_dict(changed(profile, *path, value=value), "mine.engine.json")


def test_a_missing_field_says_what_it_is(profile):
    content = profile.to_dict()
    del content["kv_bytes_per_token"]
    with pytest.raises(ig.TableError, match=r"kv_bytes_per_token is missing \(KV cache a token, bytes: 2 x layers"):
        EngineProfile.from_dict(content)
    with pytest.raises(ig.TableError, match="speed is unknown; fields are"):
        EngineProfile.from_dict(profile.to_dict() | {"speed": 1})


def test_a_field_that_may_be_null_may_be_absent(profile):
    content = profile.to_dict()
    del content["price_per_gpu_hour"], content["bandwidth_gb_s"], content["notes"]
    assert EngineProfile.from_dict(content).price_per_gpu_hour is None


def test_files_that_are_no_profile_say_so(tmp_path):
    for text, message in (("{", "not JSON"), ("[1]", "must be one JSON object")):
        file = tmp_path / "x.engine.json"
        file.write_text(text)
        with pytest.raises(ig.TableError, match=message):
            EngineProfile.load(file)
    with pytest.raises(ig.TableError, match="cannot be read"):
        EngineProfile.load(tmp_path / "none.json")


def test_a_profile_comes_beside_the_table_or_in_its_metadata(profile, tmp_path):
    bare = tmp_path / "bare.parquet"
    shutil.copy(data_path("traces_llama3_8b.parquet"), bare)
    without = load_table(bare)
    assert without.engine is None and without.digest == ig.load_table().digest and without != ig.load_table()

    profile_path(bare).write_text(profile.to_json())
    beside = load_table(bare)  # the file's own bytes are the same: the profile beside it is part of what is loaded
    assert beside.engine == profile and beside == ig.load_table()

    inside = tmp_path / "inside.parquet"
    write_table(beside, inside)
    assert not profile_path(inside).exists()
    assert load_table(inside).engine == profile and PROFILE_KEY not in load_table(inside).metadata

    plain = tmp_path / "plain.csv"
    write_table(beside, plain)
    assert load_table(plain).engine == profile


def test_two_profiles_that_differ_are_refused(profile, tmp_path):
    path = tmp_path / "two.parquet"
    table = pq.read_table(data_path("traces_llama3_8b.parquet"))
    metadata = {**(table.schema.metadata or {}), PROFILE_KEY.encode(): profile.to_json().encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert load_table(path).engine == profile
    profile_path(path).write_text(json.dumps(changed(profile, "path_ms", value=9.0)))
    with pytest.raises(ig.TableError, match="engine_profile is not that of .*two.engine.json; remove one"):
        load_table(path)
