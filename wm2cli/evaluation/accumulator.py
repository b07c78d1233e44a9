"""Scores as pooled sums: add pairs of forecast and truth one by one, merge what several workers added, then divide.

All definitions are those of WeatherBench 2 and WeatherBench-X: sums are weighted by cell area, pooled over times and
places in float64, and roots and quotients are taken last. Anomalies are against a climatology at the valid time; the
anomaly correlation is uncentred. Nothing here reads files or knows of xarray or torch: arrays in, arrays out.

The same sums give the identity MSE = A_f^2 + A_o^2 - 2 ACC A_f A_o of activity and correlation, which the tests use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.evaluation.regions import Regions

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

PARTS = ("weight", "difference", "absolute", "square", "product", "forecast_square", "truth_square")
"""Sums kept for each lead, channel and region: weights of the cells that counted, f - o, |f - o|, (f - o)^2, and with
the anomalies f' and o': f' o', f'^2, o'^2."""

MEMBER_PARTS = ("crps", "variance")
"""Sums kept for ensembles: fair CRPS, and variance over the members (ddof 1)."""

_CHUNK_VALUES = 2**16
"""Values taken through all operations at once: few enough that the temporaries stay in a core's cache."""


@dataclass
class Accumulator:
    """Sums over pairs of forecast and truth, for T leads, C channels and R regions.

    Args:
        regions: Area weights.
        leads: T.
        channels: C.
        members: Number of ensemble members, 0 for a single forecast.
        skip_missing: Leave cells out where a value is missing, and count the rest; otherwise a missing value is an
            error.
    """

    regions: Regions
    leads: int
    channels: int
    members: int = 0
    skip_missing: bool = False
    count: NDArray[np.int64] = field(init=False)
    sums: Array = field(init=False)
    member_sums: Array = field(init=False)
    of_times: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.leads, self.channels, len(self.regions.names))
        self.count = np.zeros(self.leads, np.int64)
        self.sums = np.zeros((*shape, len(PARTS)))
        self.member_sums = np.zeros((*shape, len(MEMBER_PARTS)))
        # RMSE and ACC of each time, summed: the older convention takes their mean.
        self.of_times = np.zeros((*shape, 2))

    def add(self, lead: int, forecast: Values, truth: Values, climatology: Values | None = None) -> Array:
        """Adds one time.

        Args:
            lead: Index of the lead.
            forecast: (C, H, W), or (M, C, H, W) with members; physical values.
            truth: (C, H, W).
            climatology: (C, H, W) at the valid time; without it what needs anomalies stays undefined.

        Returns:
            (C, R) mean square error of this time.

        Raises:
            DataError: Missing or infinite values, unless `skip_missing`.
        """
        single = forecast.mean(axis=0, dtype=np.float64) if self.members else forecast
        parts = pair_sums(single, truth, climatology, self.regions, skip_missing=self.skip_missing)
        return self.add_sums(lead, parts, forecast, truth)

    def add_sums(self, lead: int, parts: Array, forecast: Values, truth: Values) -> Array:
        """Adds one time of which the sums are there already (`system_sums`).

        Args:
            lead: Index of the lead.
            parts: (C, R, 7) as from `pair_sums`, for the mean of the members if there are any.
            forecast, truth: As in `add`, of which only members are looked at.

        Returns:
            (C, R) mean square error of this time.
        """
        self.count[lead] += 1
        self.sums[lead] += parts
        if self.members:
            self.member_sums[lead] += ensemble_sums(forecast, truth, self.regions, skip_missing=self.skip_missing)
        weight, _, _, square, product, forecast_square, truth_square = np.moveaxis(parts, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mse = square / weight
            self.of_times[lead, ..., 0] += np.sqrt(mse)
            self.of_times[lead, ..., 1] += product / np.sqrt(forecast_square * truth_square)
        return np.asarray(mse)

    def merge(self, other: Accumulator) -> Accumulator:
        """Adds what another one has added, and returns itself."""
        for name in ("count", "sums", "member_sums", "of_times"):
            mine: NDArray[Any] = getattr(self, name)
            mine += getattr(other, name)
        return self

    def scores(self) -> dict[str, Array]:
        """All scores, each (T, C, R); NaN where undefined or where nothing was added."""
        made = scores_of(self.sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = self.count[:, None, None].astype(np.float64)
            made["rmse_mean_of_times"] = self.of_times[..., 0] / times
            made["acc_mean_of_times"] = self.of_times[..., 1] / times
            if self.members:
                made |= ensemble_scores(self.sums, self.member_sums, self.members)
        return made


def pair_sums(forecast: Values, truth: Values, climatology: Values | None, regions: Regions, *,
              skip_missing: bool = False) -> Array:  # fmt: skip
    """The sums of `PARTS` for one time.

    Args:
        forecast, truth, climatology: (C, H, W) physical values of any float type.
        regions: R regions on this grid.
        skip_missing: Leave out cells in which any of the three is missing.

    Returns:
        (C, R, 7) float64; NaN in the last three without a climatology.

    Raises:
        DataError: Missing or infinite values, unless `skip_missing`.
    """
    return system_sums({"": forecast}, truth, climatology, regions, skip_missing=skip_missing)[""]


def system_sums(systems: Mapping[str, Values], truth: Values, climatology: Values | None, regions: Regions, *,
                skip_missing: bool = False) -> dict[str, Array]:  # fmt: skip
    """The sums of `PARTS` for several forecasts of one time, which share what is made of truth and climatology.

    Args:
        systems: (C, H, W) forecasts by name. The climatology itself may be one of them; it has no anomaly.
        truth, climatology, regions, skip_missing: As in `pair_sums`.

    Returns:
        (C, R, 7) by name.

    Raises:
        DataError: As `pair_sums`.
    """
    channels, height, width = truth.shape
    number = len(PARTS) - 1 if climatology is not None else 3
    sums = {name: np.full((number, channels, len(regions.names)), np.nan) for name in systems}
    step = max(1, _CHUNK_VALUES // (height * width))
    for first in range(0, channels, step):
        some = slice(first, first + step)
        target = truth[some].astype(np.float64)
        normal = None if climatology is None else climatology[some].astype(np.float64)
        found = None if normal is None else target - normal
        of_truth = None if found is None else _region_sums([found], regions)
        for name, values in systems.items():
            if of_truth is not None and values is climatology:
                sums[name][:3, some] = of_truth * np.array([-1.0, 1.0, 1.0])[:, None, None]
                continue
            ahead = values[some].astype(np.float64)
            anomalies = [] if normal is None or found is None else [ahead - normal, found]
            sums[name][:5, some] = _region_sums([ahead - target, *anomalies], regions)
            if of_truth is not None:
                sums[name][5, some] = of_truth[2]
    made = {}
    for name, values in systems.items():
        own = values is climatology
        weights = np.broadcast_to(regions.areas, sums[name].shape[1:])
        # A NaN or an infinity shows in every sum it is near, 0 x NaN being NaN; only then are cells looked at.
        if not np.isfinite(sums[name][: 3 if own else None]).all():
            if not skip_missing:
                _refuse_missing(values, truth, climatology)
            weights, sums[name] = _sums_of_valid(values, truth, None if own else climatology, regions)
        made[name] = np.full((channels, len(regions.names), len(PARTS)), np.nan)
        made[name][..., 0] = weights
        made[name][..., 1 : 1 + len(sums[name])] = np.moveaxis(sums[name], 0, -1)
    return made


def _sums_of_valid(values: Values, truth: Values, climatology: Values | None, regions: Regions
                   ) -> tuple[Array, Array]:  # fmt: skip
    """(C, R) weights and (3 or 6, C, R) sums over the cells where nothing is missing."""
    weights, sums = [], []
    for channel in range(len(values)):  # one at a time: this is rare, and memory stays small
        ahead, found = (field[channel, None].astype(np.float64) for field in (values, truth))
        fields = [ahead - found]
        if climatology is not None:
            normal = climatology[channel, None].astype(np.float64)
            fields += [ahead - normal, found - normal]
        valid = np.logical_and.reduce([np.isfinite(field) for field in fields])
        fields = [np.where(valid, field, 0.0) for field in fields]
        squares = [_region_sums(fields[2:], regions)[2:]] if climatology is not None else []
        sums.append(np.concatenate([_region_sums(fields, regions), *squares]))
        weights.append(regions.sums(valid.astype(np.float64)))
    return np.concatenate(weights), np.concatenate(sums, axis=1)


def _region_sums(fields: Sequence[Array], regions: Regions) -> Array:
    """Sums over each region.

    Args:
        fields: One of (c, H, W), of which the sum, the sum of the absolute values and that of the squares are wanted;
            with the anomalies f' and o' behind it f' o' and f'^2 as well.
        regions: R regions.

    Returns:
        (3 or 5, c, R).
    """
    channels, height, _ = fields[0].shape
    made = np.empty((5 if len(fields) > 1 else 3, channels, len(regions.names)))
    by_row = np.empty((len(made), channels, height))
    for part in regions.parts:
        # Along rows first: products are summed as they are made, and no map of them is ever stored.
        inside = [values if part.columns is None else values[..., part.columns] for values in fields]
        counted = inside if part.land is None else [values * part.land for values in inside[:2]]
        np.einsum("chw->ch", counted[0], out=by_row[0])  # twice as fast as `sum` for short rows
        np.einsum("chw->ch", np.abs(counted[0]), out=by_row[1])
        np.vecdot(counted[0], inside[0], out=by_row[2])
        if len(inside) > 1:
            np.vecdot(counted[1], inside[2], out=by_row[3])
            np.vecdot(counted[1], inside[1], out=by_row[4])
        with np.errstate(invalid="ignore"):  # missing values are seen in what comes out
            made[..., part.mine] = by_row @ part.rows
    return made


def scores_of(sums: Array) -> dict[str, Array]:
    """Scores from sums of `PARTS` (..., 7), each (...).

    RMSE and the activities take the root last; ACC is uncentred and pooled; the bias is forecast minus truth.
    """
    weight, difference, absolute, square, product, forecast_square, truth_square = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mse = square / weight
        return {
            "rmse": np.sqrt(mse),
            "mse": mse,
            "mae": absolute / weight,
            "bias": difference / weight,
            "acc": product / np.sqrt(forecast_square * truth_square),
            "activity": np.sqrt(forecast_square / weight),
            "activity_truth": np.sqrt(truth_square / weight),
        }


def ensemble_sums(members: Values, truth: Values, regions: Regions, *, skip_missing: bool = False) -> Array:
    """(C, R, 2): weighted sums of the fair CRPS and of the variance over the members.

    Args:
        members: (M, C, H, W), at least two members.
        truth: (C, H, W).
        regions: R regions on this grid.
        skip_missing: Leave out cells with missing values, which `pair_sums` refuses otherwise.
    """
    out = np.empty((members.shape[1], len(regions.names), len(MEMBER_PARTS)))
    for channel in range(members.shape[1]):  # one channel at a time: memory is that of its members
        values, target = members[:, channel].astype(np.float64), truth[channel].astype(np.float64)
        both = np.stack([crps(values, target), values.var(axis=0, ddof=1)])
        if skip_missing:
            both = np.where(np.isfinite(both).all(axis=0), both, 0.0)
        out[channel] = regions.sums(both).T
    return out


def crps(members: Values, truth: Values, *, fair: bool = True) -> Array:
    """Continuous ranked probability score of an ensemble at each place.

    mean |x_m - y| - sum |x_m - x_n| / (2 M (M - 1)), with M^2 instead of M (M - 1) for the one that is not fair. The
    double sum comes from the sorted members. Undefined, so NaN, for one member when fair.

    Args:
        members: (M, ...).
        truth: (...).
        fair: The estimate that does not depend on the number of members.

    Returns:
        (...) in the unit of the values.
    """
    number = members.shape[0]
    values = np.sort(np.asarray(members, np.float64), axis=0)
    error = np.abs(values - truth).mean(axis=0)
    ranks = 2.0 * np.arange(1, number + 1) - number - 1
    apart = np.tensordot(ranks, values, axes=(0, 0))  # = sum over m < n of x_n - x_m
    pairs = number * (number - 1) if fair else number * number
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(error - apart / pairs)


def ensemble_scores(sums: Array, member_sums: Array, members: int) -> dict[str, Array]:
    """CRPS, spread and the three spread-skill ratios from sums.

    `rmse` of the same sums is that of the ensemble mean. `spread_skill` is spread / RMSE; Fortin's form corrects it for
    the number of members, the unbiased one takes variance / M off the squared error first, and is undefined where
    nothing is left.
    """
    weight, square = sums[..., 0], sums[..., PARTS.index("square")]
    variance, mse = member_sums[..., 1] / weight, square / weight
    debiased = mse - variance / members
    plain = np.sqrt(variance / mse)
    return {
        "crps": member_sums[..., 0] / weight,
        "spread": np.sqrt(variance),
        "rmse_debiased": np.where(debiased > 0, np.sqrt(np.abs(debiased)), np.nan),
        "spread_skill": plain,
        "spread_skill_fortin": plain * math.sqrt((members + 1) / members),
        "spread_skill_unbiased": np.where(debiased > 0, np.sqrt(variance / np.abs(debiased)), np.nan),
    }


def vector_rmse(first: Array, second: Array) -> Array:
    """RMSE of a vector from the mean square errors of its components: the root of their sum."""
    return np.asarray(np.sqrt(first + second))


def anomaly_identity(scores: Mapping[str, Array]) -> Array:
    """A_f^2 + A_o^2 - 2 ACC A_f A_o, which equals the MSE where all sums are over the same cells."""
    ahead, found = scores["activity"], scores["activity_truth"]
    return np.asarray(ahead**2 + found**2 - 2 * scores["acc"] * ahead * found)


def _refuse_missing(forecast: Values, truth: Values, climatology: Values | None) -> None:
    fields: Sequence[tuple[str, Values | None]] = (
        ("forecast", forecast), ("truth", truth), ("climatology", climatology)
    )  # fmt: skip
    problems = [
        f"{name}: {int(values.size - np.count_nonzero(np.isfinite(values)))} of {values.size} values"
        for name, values in fields
        if values is not None and not np.isfinite(values).all()
    ]
    raise DataError("missing or infinite values", problems=problems,
                    hint="--skipna leaves such cells out and counts the others")  # fmt: skip
