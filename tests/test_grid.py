"""Grids, area weights, regridding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wm2cli.errors import ConfigError, DataError
from wm2cli.grid import Grid, lat_bounds

SPACINGS = [
    (5.625, "cells", (32, 64)),
    (2.8125, "cells", (64, 128)),
    (1.5, "poles", (121, 240)),
    (1.40625, "cells", (128, 256)),
    (1.0, "north", (180, 360)),
    (0.25, "poles", (721, 1440)),
    (0.25, "north", (720, 1440)),
    (0.25, "cells", (720, 1440)),
]


@pytest.mark.parametrize(("spacing", "rows", "shape"), SPACINGS)
def test_regular_grids(spacing: float, rows: str, shape: tuple[int, int]) -> None:
    grid = Grid.regular(spacing, rows)  # type: ignore[arg-type]
    assert grid.shape == shape
    assert grid.lat[0] == (90.0 - spacing / 2 if rows == "cells" else 90.0)
    assert grid.lat[-1] == pytest.approx({"poles": -90.0, "cells": -90.0 + spacing / 2, "north": -90.0 + spacing}[rows])
    assert grid.area_weights().mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("grid", "weights"),
    # Pole row, next row, equator; published conventions worked out to 15 digits.
    [
        (Grid.regular(1.5), (0.005183181772576, 0.041460125663688, 1.583841064132677)),
        (Grid.regular(0.25), (0.000857926064665, 0.006863384016748, 1.572976740556811)),
        (Grid.regular(1.40625, "cells"), (0.019275603443, 0.057815199426, 1.570638625466)),
    ],
)
def test_area_weights(grid: Grid, weights: tuple[float, float, float]) -> None:
    found = grid.area_weights()
    np.testing.assert_allclose([found[0], found[1], found[grid.lat.size // 2]], weights, rtol=1e-11)


@pytest.mark.parametrize(
    ("grid", "weights"),
    [
        (Grid.regular(22.5, "cells"), (0.304481869955, 0.867091005299, 1.297693395286, 1.530733729460)),
        (Grid.regular(30.0), (0.119259607988, 0.905866657859, 1.569007076294, 1.811733315718)),
    ],
)
def test_area_weights_of_small_grids(grid: Grid, weights: tuple[float, ...]) -> None:
    found = grid.area_weights()
    assert found[:4] == pytest.approx(weights, abs=1e-12)
    np.testing.assert_allclose(found, found[::-1], rtol=1e-14)


def test_cosines_leave_the_poles_out() -> None:
    """What the cell areas are compared with in tables of the field: they differ where there are rows on the poles."""
    for spacing, rows in ((30.0, (0, 0.937822173509, 1.624355652982, 1.875644347018)),
                          (1.5, (0, 0.041463677957569, 1.583976767265045)),
                          (0.25, (0, 0.006863400350438, 1.572980483971392))):  # fmt: skip
        grid = Grid.regular(spacing)
        cosine = np.cos(np.deg2rad(grid.lat)) / np.cos(np.deg2rad(grid.lat)).mean()
        shown = cosine[:4] if len(rows) == 4 else cosine[[0, 1, grid.lat.size // 2]]
        np.testing.assert_allclose(shown, rows, atol=1e-12)
        ratio = (grid.area_weights() / cosine)[1:-1]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-11)  # sines of neighbours differ in their last digits


def test_cell_centred_weights_are_cosines() -> None:
    grid = Grid.regular(5.625, "cells")
    cosine = np.cos(np.deg2rad(grid.lat))
    np.testing.assert_allclose(grid.area_weights(), cosine / cosine.mean(), rtol=1e-13)


def test_regridding_by_hand() -> None:
    """Two columns into one, and one column over two halves."""
    fine, coarse = (
        Grid(np.array([45.0, -45.0]), np.array([0.0, 90.0, 180.0, 270.0])),
        Grid(np.array([45.0, -45.0]), np.array([45.0, 225.0])),
    )
    values = np.array([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 2.0, 2.0]])
    np.testing.assert_allclose(fine.regrid_to(coarse, values), [[2.0, 6.0], [0.0, 2.0]])
    # Cells of 180 degrees around 45 and 225 cover -45..135 and 135..315: each fine cell lies inside one of them.
    np.testing.assert_allclose(
        coarse.regrid_to(fine, np.array([[2.0, 6.0], [0.0, 2.0]])), [[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 2.0, 2.0]]
    )


def test_conservative_weights_of_latitudes() -> None:
    """Published vectors; each row of the target is found by giving it fields that are one in a single row."""
    lon = np.array([0.0, 180.0])

    def weights(source: list[float], target: list[float], kind: type = np.float64) -> NDArray[np.floating]:
        fields = np.repeat(np.eye(len(source))[:, :, None], 2, axis=2).astype(kind)
        made = Grid(np.array(source), lon).regrid_to(Grid(np.array(target), lon), fields)
        assert made.dtype == kind
        return made[:, :, 0].T

    coarse = weights([67.5, 22.5, -22.5, -67.5], [45.0, -45.0])
    polar, tropical = 0.292893218813, 0.707106781187
    np.testing.assert_allclose(coarse, [[polar, tropical, 0, 0], [0, 0, tropical, polar]], atol=1e-12)
    # In the order from south to north: 1, 2, 3, 4.
    np.testing.assert_allclose(coarse @ [4, 3, 2, 1], [3.292893218813, 1.707106781187], atol=1e-12)
    poles = [[0.116336506011, 0.883663493989, 0, 0, 0, 0, 0],
             [0, 0, 0.316987298108, 0.366025403784, 0.316987298108, 0, 0],
             [0, 0, 0, 0, 0, 0.883663493989, 0.116336506011]]  # fmt: skip
    rows = np.arange(90.0, -91, -30).tolist()
    np.testing.assert_allclose(weights(rows, [90.0, 0.0, -90.0]), poles, atol=1e-12)
    np.testing.assert_allclose(weights(rows, [90.0, 0.0, -90.0], np.float32), poles, atol=1e-6)


GRIDS = st.sampled_from(
    [Grid.regular(s, r) for s in (30.0, 20.0, 15.0, 11.25, 5.625) for r in ("poles", "cells", "north")]
)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(source=GRIDS, target=GRIDS, seed=st.integers(0, 99))
def test_conservative_regridding_keeps_the_integral(source: Grid, target: Grid, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, *source.shape))
    out = source.regrid_to(target, values)
    before = (values.mean(-1) * source.area_weights()).mean(-1)
    after = (out.astype(float).mean(-1) * target.area_weights()).mean(-1)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert out.min() >= values.min() - 1e-6
    assert out.max() <= values.max() + 1e-6


@settings(max_examples=20, deadline=None)
@given(source=GRIDS, target=GRIDS)
def test_constants_stay_constant(source: Grid, target: Grid) -> None:
    for method in ("conservative", "bilinear"):
        np.testing.assert_allclose(source.regrid_to(target, np.full(source.shape, 7.25), method), 7.25, rtol=1e-6)  # type: ignore[arg-type]


def test_bilinear_is_periodic_and_exact_on_linear_rows() -> None:
    source, target = Grid.regular(10.0, "poles"), Grid.regular(5.0, "poles")
    field = np.broadcast_to(source.lat[:, None], source.shape) + 0.0
    np.testing.assert_allclose(source.regrid_to(target, field, "bilinear")[:, 0], target.lat, rtol=1e-6, atol=1e-6)
    wave = np.broadcast_to(np.cos(np.deg2rad(source.lon)), source.shape) + 0.0
    last = source.regrid_to(target, wave, "bilinear")[0, -1]  # halfway between 350 and 360 degrees east
    assert last == pytest.approx((np.cos(np.deg2rad(350)) + 1) / 2, rel=1e-6)


def test_the_same_grid_keeps_every_bit() -> None:
    grid = Grid.regular(15.0)
    values = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    assert np.array_equal(grid.regrid_to(grid, values), values)


def test_rolling_by_whole_cells_commutes_with_regridding() -> None:
    source, target = Grid.regular(5.0), Grid.regular(15.0, "cells")
    values = np.random.default_rng(1).normal(size=source.shape)
    rolled = source.regrid_to(target, np.roll(values, 6, axis=-1))
    np.testing.assert_allclose(rolled, np.roll(source.regrid_to(target, values), 2, axis=-1), atol=1e-6)


def test_bounds_reach_the_poles() -> None:
    np.testing.assert_array_equal(lat_bounds(np.array([60.0, 0.0, -60.0])), [90.0, 30.0, -30.0, -90.0])


@pytest.mark.parametrize(
    ("lat", "lon", "reason"),
    [
        ([-45.0, 45.0], [0.0, 180.0], "must decrease"),
        ([70.0, 60.0], [0.0, 180.0], "does not reach the poles"),
        ([45.0, -45.0], [0.0, 10.0, 20.0], "does not go evenly round"),
        ([45.0, -45.0], [-180.0, 0.0], "expected values in [0, 360)"),
        ([95.0, -45.0], [0.0, 180.0], "outside -90 to 90"),
    ],
)
def test_what_is_no_global_grid_is_refused(lat: list[float], lon: list[float], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        Grid(np.array(lat), np.array(lon))
    assert reason in str(caught.value)


def test_a_spacing_must_divide_the_meridian() -> None:
    with pytest.raises(ConfigError):
        Grid.regular(7.0)


def test_grids_compare_by_coordinates_to_float32() -> None:
    grid = Grid.regular(0.25)
    assert grid == Grid(grid.lat.astype(np.float32), grid.lon.astype(np.float32))
    assert grid != Grid.regular(0.25, "cells")
    assert hash(grid) == hash(Grid(grid.lat.copy(), grid.lon.copy()))
