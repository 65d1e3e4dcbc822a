"""Draws from counters: as many words as are asked for, independent of one another; whole numbers over their range."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from inferencegym_jax.numerics import draws


def test_the_first_four_words_are_hash4s_and_more_follow() -> None:
    seeds = jnp.arange(1000, dtype=jnp.uint32)
    four = draws.hash4(seeds, 5, draws.POLICY)
    many = draws.words(seeds, 5, draws.POLICY, 11)
    assert len(many) == 11 and all(np.array_equal(a, b) for a, b in zip(four, many[:4], strict=True))
    assert len(draws.words(seeds, 5, draws.POLICY, 2)) == 2
    columns = [np.asarray(draws.uniform(word)) for word in many]
    for a, b in itertools.combinations(columns, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(1000)


@pytest.mark.parametrize("n", [2, 3, 512, 65536, 200_000])
def test_whole_numbers_fill_their_range(n: int) -> None:
    word = draws.hash4(jnp.arange(1 << 16, dtype=jnp.uint32), 0, draws.POLICY)[0]
    value = np.asarray(draws.whole(word, n))
    assert value.dtype == np.int32 and value.min() >= 0 and value.max() < n
    assert value.mean() / (n - 1) == pytest.approx(0.5, abs=4 * 0.51 / 256)
    assert draws.whole(jnp.uint32(2**32 - 1), n) == n - 1 and draws.whole(jnp.uint32(0), n) == 0
