"""Wrong inputs, each as a user would meet it: one command, its exit code, one clear message, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from weather import GROUND, TIME, UPPER, channels, encode, weather

from wm2cli.cli import run
from wm2cli.schema import Schema

WANTED = channels(Schema(UPPER, (100, 300, 500, 850, 1000), GROUND))

Fields = dict[tuple[str, float | None], bytes]


@pytest.fixture(scope="module")
def complete() -> Fields:
    return {place: encode(*place) for place in WANTED}


@pytest.fixture
def forecast(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def command(data: bytes, *more: str, init: str = "2024-01-01T06", name: str = "analysis.grib") -> int:
        (tmp_path / name).write_bytes(data)
        words = ["forecast", "--init", init, "--hours", "12", "--input", name, "--weights", str(weights)]
        return run([*words, "--allow-untrained", "--out", "out.nc", *more])

    return command


def whole(fields: Fields, **changes: bytes) -> bytes:
    """All messages; `t500=b"..."` replaces one, an empty one takes it away."""
    labels = {name if level is None else f"{name}{level:g}": (name, level) for name, level in fields}
    return b"".join({**fields, **{labels[label]: data for label, data in changes.items()}}.values())


def test_a_complete_file_makes_a_forecast(forecast: Callable[..., int], complete: Fields) -> None:
    assert forecast(whole(complete)) == 0
    with xr.open_dataset("out.nc") as made:
        assert made.time.values.tolist() == (TIME + np.array([6, 12], "m8[h]")).astype("M8[ns]").tolist()


def test_flipped_and_rolled_files_make_the_same_forecast(forecast: Callable[..., int], complete: Fields) -> None:
    assert forecast(whole(complete), "--lossless") == 0
    turned = {place: encode(*place, south_first=True, from_lon=180.0) for place in reversed(WANTED)}
    assert forecast(whole(turned), "--lossless", "--out", "turned.nc", name="turned.grib") == 0
    with xr.open_dataset("out.nc") as one, xr.open_dataset("turned.nc") as other:
        assert all(np.array_equal(one[name].values, other[name].values) for name in one.data_vars)


def regional() -> bytes:
    lat, lon = np.linspace(60, 30, 13), np.arange(0, 41, 2.5)
    return b"".join(encode(name, level, weather(name, level, lat, lon), lat=lat, lon=lon) for name, level in WANTED)


def holed() -> bytes:
    values = weather("t", 500)
    values[3, 4] = np.nan
    return encode("t", 500, values)


WRONG: dict[str, tuple[Callable[[Fields], bytes], list[str]]] = {
    "no grib": (lambda fields: b"hello, this is a text\n" * 9, ["analysis.grib", "text"]),
    "empty": (lambda fields: b"", ["analysis.grib", "empty"]),
    "html": (lambda fields: b"<!DOCTYPE html><html><body>404</body></html>", ["analysis.grib", "HTML"]),
    "truncated": (lambda fields: whole(fields)[:-100], ["analysis.grib", "message 33", "get it again"]),
    "no end marker": (lambda fields: whole(fields)[:-4] + b"\0\0\0\0", ["analysis.grib", "7777"]),
    "junk between": (lambda fields: fields["t", 500] + b"junk" + fields["t", 300], ["analysis.grib"]),
    "a level missing": (lambda fields: whole(fields, t1000=b""), ["t: 1000 hPa missing", "--extrapolate"]),
    "a variable missing": (
        lambda fields: whole(fields, msl=b""),
        ["msl (Mean sea level pressure) is missing", "--derive"],
    ),
    "wrong units": (
        lambda fields: whole(fields, t500=encode("t", 500, weather("t", 500) - 273.15)),
        ["t500 spans", "wrong unit or corrupt", "analysis.grib message"],
    ),
    "NaN": (
        lambda fields: whole(fields, t500=holed()),
        ["t500 has 1 missing or infinite values", "analysis.grib message"],
    ),
    "regional": (lambda fields: regional(), ["a regional file"]),
    "twice": (
        lambda fields: whole(fields) + encode("t", 500, weather("t", 500) + 1),
        ["t500 is there 2 times with different values"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(
    case: str, forecast: Callable[..., int], complete: Fields, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    build, parts = WRONG[case]
    assert forecast(build(complete)) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert "Traceback" not in streams.err
    for part in parts:
        assert part in streams.err, streams.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.grib"]


def test_two_times_in_a_file(
    forecast: Callable[..., int], complete: Fields, capsys: pytest.CaptureFixture[str]
) -> None:
    later = TIME + np.timedelta64(12, "h")
    both = whole(complete) + b"".join(encode(*place, time=later) for place in WANTED if place != ("q", 300))
    assert forecast(both) == 0
    capsys.readouterr()
    assert forecast(both, "--overwrite", init="2024-01-01T18") == 3
    assert "q: 300 hPa missing" in capsys.readouterr().err
    assert forecast(both, "--overwrite", init="2024-01-01T12") == 3
    assert "there are: 2024-01-01T06, 2024-01-01T18" in capsys.readouterr().err
