"""What comes with wm2: complete, whole, labelled, and good enough to show."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wm2cli import bundled, checkpoint, weights
from wm2cli.cli import run
from wm2cli.errors import CheckpointError, UsageError
from wm2cli.fetch import Access, obtain
from wm2cli.sources import Request

INIT = np.datetime64("2024-01-01T00", "s")


def test_the_manifest_names_every_file_with_its_hash() -> None:
    named = set()
    for entry in bundled.manifest().values():
        content = entry.path.read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry.sha256, entry.bytes), entry.name
        assert entry.licence == "MIT"
        assert "simulated" in entry.origin
        named.add(entry.path)
    here = {path for path in bundled.folder().rglob("*") if path.suffix in (".nc", ".safetensors")}
    assert named == here


def test_the_default_weights_are_small_and_say_what_they_are() -> None:
    path = weights.resolve(None)
    assert path == weights.resolve("wm2-mini")
    assert path.stat().st_size <= 40e6
    header, _ = checkpoint.read_header(path)
    assert header.trained
    assert header.training["kind"] == "simulated"
    assert "imulated" in str(header.training["data"])
    assert header.config.schema_out.surface[:8] == ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")
    assert len(header.config.schema_out.levels) >= 13
    assert sorted(processor.hours for processor in header.config.processors) == [1, 6]


def test_a_name_that_is_nearly_right_is_answered() -> None:
    with pytest.raises(CheckpointError) as caught:
        weights.resolve("wm2-mimi")
    assert caught.value.hint is not None
    assert "did you mean 'wm2-mini'" in caught.value.hint


def test_the_sample_is_outside_the_training_years() -> None:
    header, _ = checkpoint.read_header(weights.resolve(None))
    ranges = [(np.datetime64(first), np.datetime64(last)) for first, last in header.training["train"]]
    for time in bundled.sample_states():
        assert not any(first <= time <= last for first, last in ranges)


def test_another_date_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        obtain(["sample"], Request((np.datetime64("2023-05-05T00", "s"),)), Access())
    assert "2024-01-01T00" in str(caught.value.hint)


@pytest.fixture(scope="module")
def forecast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "forecast.nc"
    assert run(["forecast", "--init", "2024-01-01T00", "--days", "3", "--source", "sample", "--out", str(out)]) == 0
    return out


def test_a_forecast_from_the_sample_says_that_it_is_simulated(forecast: Path) -> None:
    with xr.open_dataset(forecast) as data:
        assert data.attrs["wm2_kind"] == "simulated"
        assert "no operational skill" in data.attrs["warning"]
        assert data.attrs["initial_conditions_source"] == "sample"


def test_the_bundled_weights_beat_persistence_and_climatology(forecast: Path) -> None:
    """Against the bundled truth, in a few lines of numpy; the model card has the figures over many starts."""
    truth_path, climatology_path = bundled.sample_truth(INIT), bundled.sample_climatology()
    assert truth_path is not None
    assert climatology_path is not None
    with xr.open_dataset(forecast) as made, xr.open_dataset(truth_path) as truth, \
            xr.open_dataset(climatology_path) as usual:  # fmt: skip
        area = np.cos(np.deg2rad(made.latitude.values))[:, None] * np.ones(made.longitude.size)
        for name, level in (("z", 500), ("t", 850), ("t2m", None)):

            def pick(data: xr.Dataset, name: str = name, level: int | None = level) -> xr.DataArray:
                return data[name] if level is None else data[name].sel(level=level)

            for hours in (24, 48, 72):
                time = INIT + np.timedelta64(hours, "h")
                real = pick(truth).sel(time=time).values
                day = int((time.astype("datetime64[D]") - np.datetime64("2024-01-01")).astype(int)) + 1
                errors = [
                    float(np.sqrt(np.average((found - real) ** 2, weights=area)))
                    for found in (pick(made).sel(time=time).values, pick(truth).sel(time=INIT).values,
                                  pick(usual).sel(dayofyear=day, hour=0).values)
                ]  # fmt: skip
                assert errors[0] < min(errors[1:]), (name, hours, errors)


def test_weights_info_shows_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "wm2-mini"
    assert document["training"]["kind"] == "simulated"
