"""Each source once at its real size: 0.25 degrees, 25 levels, from the stand-in to a forecast of 14 days."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import standin_arco
import standin_cds
import weather
import xarray as xr
from standin_cds import KEY, Cds
from standins import GFS_GROUND, GFS_NAMES, TIME, Line, Server, gfs_objects, gfs_path, ifs_objects, ifs_path

from wm2cli.cli import run
from wm2cli.grid import Grid
from wm2cli.schema import LEVELS_25, LEVELS_37

pytestmark = pytest.mark.slow

GRID = Grid.regular(0.25)
LAT, LON = np.array(GRID.lat), np.array(GRID.lon)
JUNE = np.datetime64("2024-06-01T00", "s")
FIELDS: dict[tuple[str, float | None], weather.Array] = {}


def field(name: str, level: float | None) -> weather.Array:
    """Made once for all sources: a field of a million points takes a while."""
    key = (name, None if level is None else float(level))
    if key not in FIELDS:
        FIELDS[key] = weather.weather(name, level, LAT, LON).astype(np.float32)
    return FIELDS[key].astype(np.float64)


def gfs() -> dict[str, bytes]:
    lines = []
    encode = partial(weather.encode, style="gfs", lat=LAT, lon=LON, time=TIME, bits=16)

    def upper(name: str, level: float) -> Line:
        return Line(f"{GFS_NAMES[name]}:{level:g} mb", encode(name, level, field(name, level)))

    for level in LEVELS_25:
        lines += [upper(name, level) for name in ("z", "t")]
        lines.append(Line(f"RH:{level:g} mb", bytes(1000)))
        lines.append(upper("q", level))
        lines.append(Line(f"VVEL:{level:g} mb", bytes(1000)))
        lines += [upper(name, level) for name in ("u", "v")]
        lines.append(Line(f"ABSV:{level:g} mb", bytes(1000)))
    lines += [Line(words, encode(name, None, field(name, None))) for name, words in GFS_GROUND.items()]
    return gfs_objects(lines, gfs_path(TIME, "0p25"))


def ifs(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def message(name: str, level: float | None, time: np.datetime64 = TIME) -> bytes:
        return weather.encode(name, level, field(name, level) if name != "r" else None, style="ifs", time=time,
                              lat=LAT, lon=LON, from_lon=180.0, packing="grid_ccsds", bits=16)  # fmt: skip

    monkeypatch.setattr("standins.ifs_message", message)
    return ifs_objects(ifs_path(JUNE, "0p25"), JUNE, without=[f"r{level}" for level in LEVELS_37])


def arco(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def chunk(name: str, levels: tuple[float, ...]) -> bytes:
        if name in standin_arco.STATIC:
            return standin_arco.pack(np.zeros(GRID.shape))
        # Levels that nobody asks for repeat the next one that is asked for: their number is what matters.
        stack = [field(name, min((held for held in LEVELS_25 if held >= level), default=1000)) for level in levels]
        return standin_arco.pack((np.stack(stack) if levels else field(name, None))[None])

    monkeypatch.setattr(standin_arco, "chunk", chunk)
    monkeypatch.setattr(weather, "LAT", LAT)
    monkeypatch.setattr(weather, "LON", LON)
    return standin_arco.arco_objects(hours=(0,))


def era5(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    def message(name: str, level: float | None, time: np.datetime64, version: str = "0001", bits: int = 16) -> bytes:
        return weather.encode(name, level, field(name, level), time=time, bits=bits, lat=LAT, lon=LON)

    monkeypatch.setattr(standin_cds, "era5_message", message)
    return {}


@pytest.mark.parametrize("source", ["gfs", "ifs", "arco", "era5"])
def test_from_an_archive_to_14_days(
    source: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    makers: dict[str, Callable[[], dict[str, bytes]]] = {
        "gfs": gfs, "ifs": partial(ifs, monkeypatch), "arco": partial(arco, monkeypatch),
        "era5": partial(era5, monkeypatch),
    }  # fmt: skip
    (tmp_path / "config.toml").write_text("[network]\nfirst_pause = 0.01\nlongest_pause = 0.1\n")
    init = JUNE if source == "ifs" else TIME
    assert run(["weights", "init", "--preset", "tiny", "--out", "tiny.safetensors"]) == 0
    with Server(makers[source]()) as server, Cds(server) as cds:
        for name in ("WM2_GFS_ROOTS", "WM2_IFS_ROOTS", "WM2_ARCO_ROOT"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("CDSAPI_URL", cds.api)
        monkeypatch.setenv("CDSAPI_KEY", KEY)
        capsys.readouterr()
        init_text = str(init.astype("datetime64[h]"))
        assert run(["fetch", "--init", init_text, "--source", source, "--json"]) == 0, capsys.readouterr().err
        document = json.loads(capsys.readouterr().out)
        requests, fetched = len(server.log), sum(piece["bytes"] for piece in document["pieces"])
        print(f"{source}: {requests} requests, {fetched / 1e6:.0f} MB kept")
        # The bundled levels of the network are among the 25, so what was fetched serves.
        assert run(["forecast", "--init", init_text, "--days", "14", "--weights", "tiny.safetensors",
                    "--allow-untrained", "--source", source, "--offline", "--out", "a.nc"]) == 0, (
            capsys.readouterr().err)  # fmt: skip
        assert len(server.log) == requests
    with xr.open_dataset("a.nc") as made:
        assert made.sizes["time"] == 56
        assert made.attrs["initial_conditions_source"] == source
        assert np.isfinite(made["t2m"].values).all()
    if source == "gfs":
        assert requests <= 85
        assert len(document["pieces"]) == 1
