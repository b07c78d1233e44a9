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
    assert run(["forecast", "--init", "2024-01-01T00", "--days", "14", "--source", "sample", "--out", str(out)]) == 0
    return out


def test_a_forecast_from_the_sample_says_that_it_is_simulated(forecast: Path) -> None:
    with xr.open_dataset(forecast) as data:
        assert data.attrs["wm2_kind"] == "simulated"
        assert "no operational skill" in data.attrs["warning"]
        assert data.attrs["initial_conditions_source"] == "sample"


def errors(forecast: Path, name: str, level: int | None, hours: int) -> tuple[float, float, float]:
    """RMSE of forecast, persistence and climatology against the bundled truth, in a few lines of numpy."""
    truth_path, climatology_path = bundled.sample_truth(INIT), bundled.sample_climatology()
    assert truth_path is not None
    assert climatology_path is not None
    time = INIT + np.timedelta64(hours, "h")
    day = int((time.astype("datetime64[D]") - np.datetime64("2024-01-01")).astype(int)) + 1

    def pick(path: Path, **where: object) -> np.ndarray:
        with xr.open_dataset(path) as data:
            field = data[name] if level is None else data[name].sel(level=level)
            return np.asarray(field.sel(where).values, np.float64)

    real = pick(truth_path, time=time)
    with xr.open_dataset(forecast) as data:
        area = np.cos(np.deg2rad(data.latitude.values))[:, None] * np.ones(data.longitude.size)
    found = (pick(forecast, time=time), pick(truth_path, time=INIT), pick(climatology_path, dayofyear=day, hour=0))
    one, other, usual = (float(np.sqrt(np.average((field - real) ** 2, weights=area))) for field in found)
    return one, other, usual


@pytest.mark.parametrize(
    ("name", "level", "hours"),
    [
        *(("z", 500, hours) for hours in (24, 72, 120, 192, 240)),
        *(("t", 850, hours) for hours in (24, 72, 120, 192, 240)),
        *(("u", 850, hours) for hours in (24, 72, 120, 192)),
        *(("t2m", None, hours) for hours in (24, 72, 120, 192)),
    ],
)
def test_the_bundled_weights_beat_persistence_and_climatology(
    forecast: Path, name: str, level: int | None, hours: int
) -> None:
    """As far as the model card says; it has the figures over many starts."""
    made, persistence, climatology = errors(forecast, name, level, hours)
    assert made < min(persistence, climatology)


@pytest.mark.parametrize(("name", "level"), [("z", 500), ("t", 850), ("u", 850), ("t2m", None)])
def test_the_last_day_is_near_climatology(forecast: Path, name: str, level: int | None) -> None:
    made, persistence, climatology = errors(forecast, name, level, 336)
    assert made < persistence
    assert made < 1.2 * climatology


def test_the_first_day_is_as_good_as_it_is_meant_to_be(forecast: Path) -> None:
    made, persistence, _ = errors(forecast, "z", 500, 24)
    assert made < 0.18 * persistence


def test_weights_info_shows_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "wm2-mini"
    assert document["training"]["kind"] == "simulated"
