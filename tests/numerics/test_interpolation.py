"""The hand-written lookup agrees with scipy's RegularGridInterpolator on clipped queries."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.interpolate import RegularGridInterpolator

from inferencegym_jax.models import ServeAction
from inferencegym_jax.numerics.interpolation import locate, trilinear
from inferencegym_jax.table.latency_table import METRICS, load_table
from inferencegym_jax.table.lookup import TableGrid


@st.composite
def grids(draw):
    axes = []
    for _ in range(3):
        size = draw(st.integers(1, 9))
        steps = draw(st.lists(st.integers(1, 400), min_size=size, max_size=size))
        axes.append(np.cumsum(steps) / 4.0)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.01, 1000.0, [len(axis) for axis in axes]).astype(np.float32)
    spans = [(axis[0] - 10, axis[-1] + 10) for axis in axes]
    inside = np.stack([rng.uniform(low, high, 40) for low, high in spans], axis=-1)
    nodes = np.stack([rng.choice(axis, 10) for axis in axes], axis=-1)
    return axes, values, np.concatenate([inside, nodes]).astype(np.float32)


def scipy_lookup(axes, values, points):
    # scipy wants two nodes an axis: a single node is a constant axis
    wide = [axis if len(axis) > 1 else np.array([axis[0], axis[0] + 1.0]) for axis in axes]
    for i, axis in enumerate(axes):
        if len(axis) == 1:
            values = np.repeat(values, 2, axis=i)
    clipped = np.stack(
        [np.clip(points[:, i].astype(np.float64), axis[0], axis[-1]) for i, axis in enumerate(axes)], axis=-1
    )
    return RegularGridInterpolator(wide, values.astype(np.float64))(clipped)


def interpolated(axes, values, points):
    """What ``TableGrid`` composes, on a grid of any three axes: float32[points]."""
    row, places = jnp.zeros(len(points), jnp.int32), []
    for i, axis in enumerate(axes):
        cell, place = locate(jnp.asarray(points[:, i]), [float(node) for node in axis])
        row = row * len(axis) + cell
        places.append(place)
    n0, n1, n2 = (len(axis) for axis in axes)
    return np.asarray(trilinear(jnp.asarray(values).reshape(-1, 1), row, (n0, n1, n2), tuple(places)))[:, 0]


@settings(max_examples=40, deadline=None)
@given(grids())
def test_agrees_with_scipy_on_random_grids_and_queries(grid):
    axes, values, points = grid
    np.testing.assert_allclose(interpolated(axes, values, points), scipy_lookup(axes, values, points), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, 20, elements=st.floats(-50, 700, width=32)))
def test_locate_names_the_cell_and_the_place_in_it(x):
    nodes = (1.0, 4.0, 8.0, 512.0)
    cell, place = (np.asarray(a) for a in locate(jnp.asarray(x), nodes))
    clipped = np.clip(x, nodes[0], nodes[-1])
    lower, upper = np.asarray(nodes)[cell], np.asarray(nodes)[cell + 1]
    assert ((place >= 0) & (place <= 1)).all()
    np.testing.assert_allclose(lower + place * (upper - lower), clipped, rtol=1e-5)


def test_lookup_on_the_shipped_table_agrees_with_scipy():
    table = load_table()
    rng = np.random.default_rng(0)
    n = 300
    knobs = {name: rng.choice(table.axes[name], n).astype(int) for name in ("spec_length", "quant_tier")}
    disagg = rng.integers(0, 2, n).astype(bool)
    batch = rng.integers(1, 513, n)
    kv = rng.uniform(0.1, 1.0, n).astype(np.float32)
    prompt = rng.uniform(32, 8192, n).astype(np.float32)
    action = ServeAction(kv_budget=kv, batch_size=batch, prefill_disagg=disagg, **knobs).as_arrays()
    found = TableGrid(table).lookup(action, jnp.asarray(prompt))
    axes = [np.asarray(table.axes[key]) for key in ("batch_size", "kv_budget", "prompt_len_bucket")]
    points = np.stack([batch, kv, prompt], axis=-1)
    for m, metric in enumerate(METRICS):
        for i in range(n):
            block = table.values[
                table.axes["spec_length"].index(knobs["spec_length"][i]), knobs["quant_tier"][i], int(disagg[i]), ..., m
            ]
            expected = scipy_lookup(axes, block, points[i : i + 1])[0]
            assert np.asarray(found[metric])[i] == pytest.approx(expected, rel=1e-5), (metric, i)


@pytest.mark.parametrize("spec_length, stands_for", [(3, 2), (7, 4), (0, 0), (8, 8)])
def test_a_traced_discrete_knob_that_the_table_lacks_takes_the_next_lower_one(spec_length, stands_for):
    grid = TableGrid(load_table())
    prompt = jnp.float32(300.0)
    given_value = grid.lookup(ServeAction(spec_length=spec_length).as_arrays(), prompt)
    lower = grid.lookup(ServeAction(spec_length=stands_for).as_arrays(), prompt)
    assert float(given_value["tpot_ms"]) == float(lower["tpot_ms"])
