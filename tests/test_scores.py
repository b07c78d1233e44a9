"""The definitions of scores: vectors computed by hand and by others, identities, and agreement with other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scores as other_scores
import scoringrules
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation.accumulator import Accumulator, anomaly_identity, crps, pair_sums, scores_of
from wm2cli.evaluation.regions import NAMED, Regions
from wm2cli.evaluation.results import wind_labels, wind_parts
from wm2cli.evaluation.seeps import error_matrix, seeps
from wm2cli.evaluation.significance import block_bootstrap
from wm2cli.grid import Grid

Array = NDArray[np.float64]

# Grid A of the specification, rows from north to south as everywhere in wm2; i counts from the south.
GRID = Grid(78.75 - 22.5 * np.arange(8), 22.5 * np.arange(16))
TIME, ROW, COLUMN = np.meshgrid(np.arange(2), np.arange(8)[::-1], np.arange(16), indexing="ij")
TRUTH = (7 * ROW + 3 * COLUMN + 5 * TIME) % 11 - 5.0
FORECAST = TRUTH + ((5 * ROW + 2 * COLUMN + 3 * TIME) % 7 - 3) / 2
CLIMATOLOGY = (ROW + 2 * COLUMN + TIME) % 5 - 2.0
TRUTH_2 = (3 * ROW + 5 * COLUMN + 2 * TIME) % 13 - 6.0
FORECAST_2 = TRUTH_2 + ((2 * ROW + 3 * COLUMN + TIME) % 5 - 2) / 2
MEMBERS = np.stack(
    [FORECAST + (((ROW * COLUMN + 2 * ROW + TIME) + m * (ROW + COLUMN + 2)) % 5 - 2) / 4 for m in range(5)]
)
REGIONS = Regions.on(GRID)
CLOSE = 1e-12


def accumulate(forecast: Array, truth: Array, climatology: Array | None = None, regions: Regions = REGIONS,
               **how: bool) -> dict[str, Array]:  # fmt: skip
    """Scores (R,) of one channel over all times."""
    made = Accumulator(regions, 1, 1, **how)
    for t in range(len(truth)):
        made.add(0, forecast[t, None], truth[t, None], None if climatology is None else climatology[t, None])
    return {name: table[0, 0] for name, table in made.scores().items()}


def test_deterministic_vectors() -> None:
    found = accumulate(FORECAST, TRUTH, CLIMATOLOGY)
    wanted = {
        "mse": 1.0006624397541297, "rmse": 1.0003311650419224, "rmse_mean_of_times": 1.000330636859132,
        "mae": 0.8577304607928045, "bias": 0.007419902096139313, "acc": 0.9549208184464634,
        "acc_mean_of_times": 0.9549528560199271, "activity": 3.226625026844498, "activity_truth": 3.3695646198649998,
    }  # fmt: skip
    assert {name: found[name][0] for name in wanted} == pytest.approx(wanted, rel=CLOSE)


@pytest.mark.parametrize(
    ("region", "rmse", "mse"),
    [
        ("tropics", 0.9941233575366791, (1.0078125, 0.96875)),
        ("northern-hemisphere", 1.00585932492787, (0.987355837205, 1.036150125883)),
        ("southern-hemisphere", 1.0024582054673588, (0.998441118309, 1.011403789109)),
    ],
)
def test_regional_vectors(region: str, rmse: float, mse: tuple[float, float]) -> None:
    place = REGIONS.names.index(region)
    assert accumulate(FORECAST, TRUTH)["rmse"][place] == pytest.approx(rmse, rel=CLOSE)
    for t in range(2):
        assert accumulate(FORECAST[[t]], TRUTH[[t]])["mse"][place] == pytest.approx(mse[t], abs=1e-11)


def test_scores_without_area_weights() -> None:
    """The fields themselves: every cell counts the same."""
    even = Regions(("all",), np.ones((1, 8)), np.ones((1, 16)), np.array([0]))
    assert accumulate(FORECAST, TRUTH, regions=even)["rmse"][0] == pytest.approx(0.9990229601966113, rel=CLOSE)
    single = [accumulate(FORECAST[[t]], TRUTH[[t]], regions=even)["mse"][0] for t in range(2)]
    assert single == pytest.approx([1.00390625, 0.9921875], rel=CLOSE)


def test_conventions_of_others() -> None:
    """Correlations that others take between anomalies without their mean; ours leaves the mean in."""
    ahead, found, nothing = FORECAST - CLIMATOLOGY, TRUTH - CLIMATOLOGY, np.zeros_like(TRUTH)
    area = np.broadcast_to(GRID.area_weights()[:, None], (8, 16)).ravel()

    def centred(values: Array) -> Array:
        return values - np.average(values.reshape(2, 128), axis=1, weights=area)[:, None, None]

    each_time = accumulate(centred(ahead), centred(found), nothing)["acc_mean_of_times"][0]
    assert each_time == pytest.approx(0.9549554534589494, rel=CLOSE)
    single = [accumulate(centred(ahead)[[t]], centred(found)[[t]], nothing[[t]])["acc"][0] for t in range(2)]
    assert single == pytest.approx([0.955940968748, 0.953969938170], abs=1e-11)
    stormer = accumulate(ahead - ahead.mean(), found - found.mean(), nothing)["acc"][0]
    assert stormer == pytest.approx(0.9549178579059159, rel=CLOSE)


@pytest.mark.parametrize(("t", "mse", "mae", "bias", "acc"), [
    (0, 0.998605826979, 0.855495267479, 0.011533127646, 0.955934868179),
    (1, 1.002719052529, 0.859965654106, 0.003306676547, 0.953970843860),
])  # fmt: skip
def test_single_times(t: int, mse: float, mae: float, bias: float, acc: float) -> None:
    found = accumulate(FORECAST[[t]], TRUTH[[t]], CLIMATOLOGY[[t]])
    assert [found[name][0] for name in ("mse", "mae", "bias", "acc")] == pytest.approx([mse, mae, bias, acc], abs=1e-11)


def test_wind_vector_and_persistence() -> None:
    both = [accumulate(f, o)["mse"][0] for f, o in ((FORECAST, TRUTH), (FORECAST_2, TRUTH_2))]
    assert sum(both) == pytest.approx(1.5004152354919105, rel=CLOSE)
    for t, mse in enumerate((1.498369244129, 1.502461226854)):
        parts = [accumulate(f[[t]], o[[t]])["mse"][0] for f, o in ((FORECAST, TRUTH), (FORECAST_2, TRUTH_2))]
        assert sum(parts) == pytest.approx(mse, abs=1e-11)
    assert np.sqrt(sum(both)) == pytest.approx(1.2249143788411956, rel=CLOSE)
    assert accumulate(TRUTH[[0]], TRUTH[[1]])["rmse"][0] == pytest.approx(5.4755418152228446, rel=CLOSE)


def test_missing_values_are_refused_or_counted() -> None:
    holed = FORECAST.copy()
    holed[0, 7 - 0, :] = np.nan  # i = 0 is the southernmost row
    holed[1, 7 - 3, 4] = np.nan
    with pytest.raises(DataError, match="forecast: 16 of 128 values") as caught:
        accumulate(holed, TRUTH, CLIMATOLOGY)
    assert "--skipna" in str(caught.value.hint)
    found = accumulate(holed, TRUTH, skip_missing=True)
    assert found["rmse"][0] == pytest.approx(1.0000347426093765, rel=CLOSE)
    single = [accumulate(holed[[t]], TRUTH[[t]], skip_missing=True)["mse"][0] for t in range(2)]
    assert single == pytest.approx([0.997314223389, 1.002751962860], abs=1e-11)
    assert np.sqrt(np.mean(single)) == pytest.approx(1.000016546425405, rel=CLOSE)  # WeatherBench 2: times, then mean
    assert found["rmse_mean_of_times"][0] == pytest.approx(np.sqrt(single).mean(), rel=CLOSE)
    sums = pair_sums(holed[0, None], TRUTH[0, None], None, REGIONS, skip_missing=True)
    assert sums[0, 0, 0] == pytest.approx(128 - 16 * GRID.area_weights()[-1], rel=CLOSE)


@pytest.mark.parametrize("which", ["truth", "climatology"])
def test_missing_values_of_the_others_are_named(which: str) -> None:
    fields = {"truth": TRUTH.copy(), "climatology": CLIMATOLOGY.copy()}
    fields[which][0, 2, 3] = np.inf
    with pytest.raises(DataError, match=f"{which}: 1 of 128 values"):
        accumulate(FORECAST, fields["truth"], fields["climatology"])


def test_ensemble_vectors() -> None:
    assert MEMBERS[:, 0, 7, 0].tolist() == [-7, -6.5, -6, -6.75, -6.25]  # i = 0 is the southernmost row
    assert MEMBERS[:, 1, 0, 15].tolist() == [-4.5, -3.5, -3.75, -4, -4.25]
    made = Accumulator(REGIONS, 1, 1, members=5)
    for t in range(2):
        made.add(0, MEMBERS[:, t, None], TRUTH[t, None])
    found = {name: table[0, 0, 0] for name, table in made.scores().items()}
    wanted = {
        "crps": 0.7004125839411208, "rmse": 1.0100591573728193, "mse": 1.0202195013926896,
        "rmse_debiased": 0.9975984115274585, "spread": 0.35367294716009146, "spread_skill": 0.3501507259040161,
        "spread_skill_fortin": 0.3835709022088762, "spread_skill_unbiased": 0.3545243687974304,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=CLOSE)
    assert found["rmse_debiased"] ** 2 == pytest.approx(0.9952025906821085, rel=CLOSE)
    assert mean_of(crps(MEMBERS, TRUTH, fair=False)).mean() == pytest.approx(0.7404396410780503, rel=CLOSE)


def mean_of(values: Array) -> Array:
    """(2, 8, 16) -> (2,) area-weighted means, by numpy."""
    weights = np.broadcast_to(GRID.area_weights()[:, None], (8, 16))
    return np.asarray(np.average(values.reshape(2, 128), axis=1, weights=weights.ravel()))


def test_ensemble_vectors_of_single_times() -> None:
    for t, crps_of, mse in ((0, 0.703171048138, 1.037745043928), (1, 0.697654119744, 1.002693958857)):
        made = Accumulator(REGIONS, 1, 1, members=5)
        made.add(0, MEMBERS[:, t, None], TRUTH[t, None])
        found = {name: table[0, 0, 0] for name, table in made.scores().items()}
        wanted = {"crps": crps_of, "mse": mse}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-11)
        assert found["spread"] ** 2 == pytest.approx(0.125084553553, abs=1e-11)
    # What the CRPS is made of: the distance to the truth less half of that between two members.
    error = mean_of(np.abs(MEMBERS - TRUTH).mean(axis=0))
    assert error == pytest.approx([0.903306333823, 0.897789405429], abs=1e-11)
    for fair, apart in ((True, 0.400270571369), (False, 0.320216457095)):
        assert 2 * (error - mean_of(crps(MEMBERS, TRUTH, fair=fair))) == pytest.approx([apart, apart], abs=1e-11)


def test_scalar_crps() -> None:
    members = np.array([1.0, 2.0, 4.0])
    assert crps(members, np.array(3.0)) == pytest.approx(1 / 3)
    assert crps(members, np.array(3.0), fair=False) == pytest.approx(2 / 3)
    assert np.isnan(crps(members[:1], np.array(3.0)))


def test_overdispersed_ensemble_has_no_debiased_root() -> None:
    members = np.stack([TRUTH + (((3 * ROW + 4 * COLUMN + 2 * TIME) + 6 * m) % 9 - 4) / 2 for m in range(5)])
    made = Accumulator(REGIONS, 1, 1, members=5)
    for t in range(2):
        made.add(0, members[:, t, None], TRUTH[t, None])
    found = {name: table[0, 0, 0] for name, table in made.scores().items()}
    assert found["mse"] == pytest.approx(0.231849940669, abs=1e-11)
    assert found["spread"] ** 2 == pytest.approx(1.800187944986, abs=1e-11)
    assert found["crps"] == pytest.approx(0.314569411483, abs=1e-11)
    assert found["mse"] - found["spread"] ** 2 / 5 == pytest.approx(-0.128187648329, abs=1e-11)
    assert mean_of(crps(members, TRUTH, fair=False)).mean() == pytest.approx(0.474577764593, abs=1e-11)
    assert np.isnan(found["rmse_debiased"])
    assert np.isnan(found["spread_skill_unbiased"])


def test_seeps_vectors() -> None:
    matrix = error_matrix(np.array(0.4))
    assert matrix == pytest.approx(np.array([[0, 0.8333333, 3.3333333], [1.25, 0, 2.5], [1.875, 0.625, 0]]), abs=1e-6)
    # Any constant forecast, and chance, are worth 1.
    chances = np.array([0.4, 0.4, 0.2])  # dry, and two thirds and one third of the wet
    assert matrix @ chances == pytest.approx(np.ones(3))
    assert chances @ matrix @ chances == pytest.approx(1.0)
    forecast, truth = np.array([0, 1, 10, 0.1, 3, 8]), np.array([0, 0, 1, 9, 9, 0.05])
    found = seeps(forecast, truth, np.full(6, 0.4), np.full(6, 5.0), 0.25)
    assert found == pytest.approx([0, 1.25, 0.625, 3.333333333, 2.5, 1.875], abs=1e-9)
    assert found.mean() == pytest.approx(1.597222222222, abs=1e-11)
    assert np.isnan(seeps(forecast, truth, np.full(6, 0.9), np.full(6, 5.0), 0.25)).all()


def test_agreement_with_scores() -> None:
    dims = ("time", "latitude", "longitude")
    ours = accumulate(FORECAST, TRUTH)
    forecast, truth = (xr.DataArray(values, dims=dims) for values in (FORECAST, TRUTH))
    weights = xr.DataArray(GRID.area_weights(), dims="latitude")
    assert ours["mse"][0] == pytest.approx(
        float(other_scores.continuous.mse(forecast, truth, weights=weights)), rel=CLOSE
    )
    assert ours["mae"][0] == pytest.approx(
        float(other_scores.continuous.mae(forecast, truth, weights=weights)), rel=CLOSE
    )
    bias = other_scores.continuous.additive_bias(forecast, truth, weights=weights)
    assert ours["bias"][0] == pytest.approx(float(bias), rel=1e-10)
    theirs = other_scores.probability.crps_for_ensemble(
        xr.DataArray(MEMBERS, dims=("member", *dims)), truth, "member", method="fair", weights=weights
    )
    made = Accumulator(REGIONS, 1, 1, members=5)
    for t in range(2):
        made.add(0, MEMBERS[:, t, None], TRUTH[t, None])
    assert made.scores()["crps"][0, 0, 0] == pytest.approx(float(theirs), rel=CLOSE)


@pytest.mark.parametrize(("fair", "estimator"), [(True, "fair"), (False, "nrg")])
def test_agreement_with_scoringrules(fair: bool, estimator: str) -> None:
    theirs = scoringrules.crps_ensemble(TRUTH, MEMBERS, m_axis=0, estimator=estimator)
    assert crps(MEMBERS, TRUTH, fair=fair) == pytest.approx(theirs, rel=1e-12, abs=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0.1, 1e4))
def test_the_identity_of_error_and_anomalies(seed: int, count: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    forecast, truth, climatology = random.normal(5e4, scale, (3, count, 8, 16))
    found = accumulate(forecast, truth, climatology)
    assert anomaly_identity(found) == pytest.approx(found["mse"], rel=1e-9)
    assert (np.abs(found["acc"]) <= 1 + 1e-12).all()
    assert (found["mae"] <= found["rmse"] * (1 + 1e-12)).all()
    assert (found["rmse_mean_of_times"] <= found["rmse"] * (1 + 1e-12)).all()


def test_perfect_and_climatological_forecasts() -> None:
    perfect = accumulate(TRUTH, TRUTH, CLIMATOLOGY)
    assert perfect["rmse"][0] == 0
    assert perfect["acc"][0] == pytest.approx(1)
    climatological = accumulate(CLIMATOLOGY, TRUTH, CLIMATOLOGY)
    assert climatological["rmse"][0] == pytest.approx(climatological["activity_truth"][0], rel=CLOSE)
    assert np.isnan(climatological["acc"]).all()
    without = accumulate(FORECAST, TRUTH)
    assert np.isnan(without["acc"]).all()
    assert np.isfinite(without["rmse"]).all()


def test_float32_ensembles_and_rain_give_the_same() -> None:
    found = []
    for kind in (np.float64, np.float32):
        made = Accumulator(REGIONS, 1, 1, members=5)
        for t in range(2):
            # A third makes no number of fewer bits.
            made.add(0, (MEMBERS[:, t, None] + 1 / 3).astype(kind), (TRUTH[t, None] + 1 / 3).astype(kind))
        found.append({name: table[0, 0, 0] for name, table in made.scores().items()})
    for name in ("crps", "rmse", "rmse_debiased", "spread", "spread_skill", "spread_skill_unbiased"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6)
    forecast, truth = np.array([0, 1, 10, 0.1, 3, 8]), np.array([0, 0, 1, 9, 9, 0.05])
    rain = [seeps(forecast.astype(kind), truth.astype(kind), np.full(6, 0.4), np.full(6, 5.0), 0.25)
            for kind in (np.float64, np.float32)]  # fmt: skip
    np.testing.assert_array_equal(*rain)


def test_float32_gives_the_same() -> None:
    ours = accumulate(FORECAST + 54000.25, TRUTH + 54000.25, CLIMATOLOGY + 54000.25)
    small = accumulate(*(np.float32(values + 54000.25) for values in (FORECAST, TRUTH, CLIMATOLOGY)))
    for name in ("rmse", "mae", "bias", "acc", "activity"):
        assert small[name] == pytest.approx(ours[name], rel=1e-6)


def test_merged_parts_are_the_whole() -> None:
    parts = []
    for t in range(2):
        part = Accumulator(REGIONS, 1, 1)
        part.add(0, FORECAST[t, None], TRUTH[t, None], CLIMATOLOGY[t, None])
        parts.append(part)
    whole = parts[0].merge(parts[1]).scores()
    straight = accumulate(FORECAST, TRUTH, CLIMATOLOGY)
    for name, table in whole.items():
        np.testing.assert_array_equal(table[0, 0], straight[name])


def test_rolled_longitudes_and_many_channels_change_nothing() -> None:
    rolled = accumulate(*(np.roll(values, 5, axis=-1) for values in (FORECAST, TRUTH, CLIMATOLOGY)))
    straight = accumulate(FORECAST, TRUTH, CLIMATOLOGY)
    for name, table in rolled.items():
        assert table == pytest.approx(straight[name], rel=1e-13)
    many = pair_sums(*(np.repeat(values[0][None], 1200, axis=0) for values in (FORECAST, TRUTH, CLIMATOLOGY)), REGIONS)
    one = pair_sums(FORECAST[0, None], TRUTH[0, None], CLIMATOLOGY[0, None], REGIONS)
    assert many == pytest.approx(np.repeat(one, 1200, axis=0), rel=1e-13)


def test_regions_by_hand() -> None:
    grid = Grid.regular(2.5)
    regions = Regions.on(grid, [*NAMED, "alps=48/5/43/17", "10/170/-10/-170"])
    areas = dict(zip(regions.names, regions.areas / regions.areas[0], strict=True))
    assert areas["extra-tropics"] == pytest.approx(areas["northern-hemisphere"] + areas["southern-hemisphere"])
    assert areas["tropics"] == pytest.approx(np.sin(np.deg2rad(21.25)))
    assert areas["arctic"] == areas["antarctic"] == pytest.approx((1 - np.sin(np.deg2rad(58.75))) / 2)
    # 145 to 230 degrees east across the date line: 35 columns of 144; rows 25 to 60, so from 23.75 to 61.25.
    band = (np.sin(np.deg2rad(61.25)) - np.sin(np.deg2rad(23.75))) / 2
    assert areas["north-pacific"] == pytest.approx(band * 35 / 144)
    ones = np.ones((3, *grid.shape))
    assert regions.sums(ones) == pytest.approx(np.repeat(regions.areas[None], 3, axis=0))
    field = np.arange(73.0 * 144).reshape(grid.shape)
    dateline = (np.abs(grid.lat) <= 10)[:, None] & ((grid.lon >= 170) & (grid.lon <= 190))[None]
    assert regions.sums(field)[-1] == pytest.approx((field * grid.area_weights()[:, None])[dateline].sum())
    assert regions.names[-1] == "10/170/-10/-170"


@pytest.mark.parametrize(("text", "message"), [
    ("europ", "did you mean europe"), ("10/0/20/30", "north above south"), ("1.4/1/0.9/2", "no cell of the grid"),
    ("a=91/0/0/10", "north above south"),
])  # fmt: skip
def test_impossible_regions(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Regions.on(Grid.regular(22.5, "cells"), ["global", text])


def test_wind_names() -> None:
    assert wind_labels(("u500", "v500", "u10", "v10", "u850", "u100hPa", "v100hPa")) == (
        "wind500",
        "wind10m",
        "wind100",
    )
    assert wind_parts("wind10m") == ("u10", "v10")
    assert wind_parts("wind100") == ("u100hPa", "v100hPa")


def test_bootstrap_tells_a_difference_from_none() -> None:
    random = np.random.default_rng(1)
    inits = np.datetime64("2022-01-01", "D") + np.arange(180)
    noise = random.normal(0, 1, (180, 2))
    noise -= noise.mean(axis=0)
    found = block_bootstrap(noise + np.array([0.0, 5.0]), inits)
    assert found.mean == pytest.approx([0.0, 5.0])
    assert found.significant.tolist() == [False, True]
    assert found.blocks.tolist() == [18, 18]
    again = block_bootstrap(noise + np.array([0.0, 5.0]), inits)
    np.testing.assert_array_equal(found.low, again.low)
    few = block_bootstrap(noise[:20] + 5.0, inits[:20])
    assert np.isnan(few.low).all()
    assert not few.significant.any()


def test_bootstrap_keeps_what_is_alike_together() -> None:
    # Ten days of the same error are one event: the interval must be that of 30 events, not of 300.
    random = np.random.default_rng(2)
    events = random.normal(0, 1, 30)
    found = block_bootstrap(np.repeat(events, 10)[:, None], np.datetime64("2022-01-01", "D") + np.arange(300))
    width = (found.high - found.low)[0]
    assert width == pytest.approx(2 * 1.96 * events.std() / np.sqrt(30), rel=0.35)


def test_scores_of_nothing_are_undefined() -> None:
    made = Accumulator(REGIONS, 2, 1)
    made.add(1, FORECAST[0, None], TRUTH[0, None])
    assert np.isnan(made.scores()["rmse"][0]).all()
    assert np.isnan(scores_of(np.zeros((1, 7)))["rmse"]).all()
