"""The checks that every input passes: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inferencegym_jax.models import check_whole


@pytest.mark.parametrize("value", [2, 7, np.int64(5), np.uint32(2)])
def test_a_whole_number_in_its_range_is_an_int(value: Any) -> None:
    checked = check_whole("episodes", value, 2, 7)
    assert type(checked) is int and checked == value
    assert check_whole("episodes", 10**9) == 10**9


@pytest.mark.parametrize(
    "value", [1, 8, -3, 2.0, 2.5, True, "3", None, float("nan"), [3], pytest.param(10**5000, id="huge")]
)
def test_what_is_none_is_named_with_what_is_allowed(value: Any) -> None:
    with pytest.raises(ValueError, match="episodes = .*: must be a whole number from 2 to 7"):
        check_whole("episodes", value, 2, 7)
    with pytest.raises(ValueError, match="workers = 0: must be a whole number of at least 1"):
        check_whole("workers", 0)
