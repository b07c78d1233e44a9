"""wm2 fetch and the cache whatever the source, ladders, the choice of a source, forecasts that fetch for themselves."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import standins
import weather
import xarray as xr
from standin_arco import arco_objects
from standins import Server, gfs_lines, gfs_objects, gfs_path, ifs_objects, ifs_path, slow_down

from wm2cli import fetch, sources
from wm2cli.cli import run
from wm2cli.cli.arguments import parse_duration, parse_options, parse_times
from wm2cli.errors import NotYetError, RemoteError, ResourceError, UsageError
from wm2cli.fetch import Access, Options, ladder_of, obtain
from wm2cli.schema import Schema
from wm2cli.sources import Piece, Request, quiet
from wm2cli.sources.cache import find, keep, locked, prune

NOW = np.datetime64("2026-11-21T00", "s")
JUNE = np.datetime64("2024-06-01T00", "s")
LEVELS = (50, 100, 200, 300, 500, 700, 850, 1000)


def made(folder: Path, name: str = "a", parts: tuple[str, ...] = (), body: bytes = b"abc") -> Piece:
    """A complete piece in a folder."""
    piece = Piece(f"x/{name}", f"{name}.bin", {"name": name}, parts)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.part"
    partial.write_bytes(body)
    keep(piece, partial, folder / piece.filename, urls=["https://example.org/a"], notes=["noted"])
    return piece


# The cache


def test_a_piece_is_found_again_with_its_account(tmp_path: Path) -> None:
    piece = made(tmp_path)
    held = find(piece, tmp_path)
    assert held is not None
    assert held.path.read_bytes() == b"abc"
    assert held.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert held.urls == ("https://example.org/a",)
    assert held.notes == ("noted",)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.bin", "a.bin.wm2.json"]


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone", "no account", "broken account", "other format"])
def test_what_is_damaged_is_taken_for_absent(damage: str, tmp_path: Path) -> None:
    piece = made(tmp_path)
    path, account = tmp_path / "a.bin", tmp_path / "a.bin.wm2.json"
    if damage == "flipped":
        path.write_bytes(b"abd")
    elif damage == "shorter":
        path.write_bytes(b"ab")
    elif damage == "gone":
        path.unlink()
    elif damage == "no account":
        account.unlink()
    elif damage == "broken account":
        account.write_text("{")
    else:
        account.write_text(account.read_text().replace('"format": 1', '"format": 2'))
    assert find(piece, tmp_path) is None


def test_a_larger_piece_serves(tmp_path: Path) -> None:
    made(tmp_path, "large", ("t500", "z500", "u500"))
    small = Piece("x/large", "small.bin", {}, ("z500",))
    held = find(small, tmp_path)
    assert held is not None
    assert held.path.name == "large.bin"
    assert find(Piece("x/large", "small.bin", {}, ("z500", "q500")), tmp_path) is None
    assert find(Piece("x/other", "small.bin", {}, ("z500",)), tmp_path) is None


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    piece = Piece("x", "a.bin")
    order: list[str] = []

    def second() -> None:
        with locked(piece, tmp_path, lambda what, done, total: order.append(what)):
            order.append("second")

    with locked(piece, tmp_path, quiet):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.15)
        order.append("first")
    thread.join(5)
    assert order[0] == "another run fetches x: waiting for it"
    assert order.index("first") < order.index("second")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match="cannot write to"),
        locked(Piece("x", "a"), tmp_path / "file" / "sub", quiet),
    ):
        pass


def test_prune_takes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for age, name in ((300, "old"), (200, "used"), (100, "young")):
        made(tmp_path / "gfs", name, body=bytes(1000))
        account = tmp_path / "gfs" / f"{name}.bin.wm2.json"
        os.utime(account, (time.time() - age, time.time() - age))
    (tmp_path / "gfs" / "mine.txt").write_text("not of wm2")
    left_behind = tmp_path / "gfs" / ".x.part"
    left_behind.mkdir()
    (left_behind / "0-100").write_bytes(bytes(50))
    os.utime(left_behind, (0, 0))
    (tmp_path / "gfs" / ".under_way.part").write_bytes(bytes(50))
    assert find(Piece("x/used", "used.bin"), tmp_path / "gfs") is not None
    done = prune(tmp_path, 1000)
    assert sorted(path.name for path in (tmp_path / "gfs").iterdir()) == [
        ".under_way.part", "mine.txt", "used.bin", "used.bin.wm2.json"]  # fmt: skip
    assert done.bytes_left == 1000
    assert done.bytes_removed == 2050
    assert prune(tmp_path / "nothing", 0).removed == ()


# The command


def test_a_range_and_a_folder(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fetch", "--init", "2024-01-01T00/2024-01-02T00/6h", "--source", "idealized", "--out", "here"]
    assert run(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert len(list((tmp_path / "here").glob("*.nc"))) == 5
    assert not cache.exists()


def test_out_takes_from_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(gfs_objects(gfs_lines((500,)), gfs_path())) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        arguments = ["fetch", "--init", "2024-01-01T00", "--source", "gfs", "--option", "grid=5", "--levels", "500"]
        assert run(arguments) == 0
        server.log.clear()
        assert run([*arguments, "--out", "here", "--json"]) == 0
        assert server.log == []
    text = capsys.readouterr().out
    document = json.loads(text[text.index("{") :])
    (piece,) = document["pieces"]
    assert piece["path"].startswith("here/")
    assert piece["cached"] is True
    assert len(piece["sha256"]) == 64
    assert document["times"] == ["2024-01-01T00"]
    assert run([*arguments, "--out", "here", "--offline"]) == 0


def test_the_plan(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fetch", "--init", "2024-01-01T00,2024-01-01T06", "--source", "gfs", "--plan"]
    monkeypatch.setenv("WM2_GFS_ROOTS", "http://127.0.0.1:9")
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    assert document["cached"] == 0
    assert [piece["key"] for piece in document["pieces"]] == ["gfs/0p25/2024-01-01T00", "gfs/0p25/2024-01-01T06"]
    assert document["bytes"] / 2 == pytest.approx(120e6, rel=0.05)
    assert 75 <= document["requests"] / 2 <= 90
    assert run(arguments) == 0
    streams = capsys.readouterr()
    assert "gfs/0p25/2024-01-01T06" in streams.out
    assert "0 of 2 pieces are there" in streams.err


def test_one_time_that_fails_does_not_keep_the_others(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(gfs_objects(gfs_lines((500,)), gfs_path())) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        arguments = ["fetch", "--init", "2023-12-31T18,2024-01-01T00", "--source", "gfs,gfs", "--option", "grid=5",
                     "--levels", "500"]  # fmt: skip
        assert run(arguments) == 4
        text = capsys.readouterr().err
        assert "1 of 2 could not be fetched" in text
        assert "2023-12-31T18" in text
        assert run([*arguments[:2], "2024-01-01T00", *arguments[3:], "--offline"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to do"),
        (["--init", "yesterday"], "'yesterday' is not a time"),
        (["--init", "2024-01-02/2024-01-01/6h"], "its end lies before its start"),
        (["--init", "2024-01-01/2024-01-02"], "is not a range"),
        (["--init", "2024-01-01", "--wait", "soon"], "'soon' is not a duration"),
        (["--init", "2024-01-01", "--option", "grid"], "is not KEY=VALUE"),
        (["--init", "2024-01-01", "--source", "gsf"], "unknown source 'gsf'"),
        (["--init", "2024-01-01", "--source", "gfs", "--variables", "zz"], "unknown variable 'zz'"),
        (["--init", "latest", "--source", "idealized"], "has no latest state"),
        (["--prune", "--init", "latest"], "--prune stands alone"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_prune_by_command(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(cache / "gfs", body=bytes(2000))
    assert run(["fetch", "--prune", "--keep", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes_removed"] == 2000
    assert not (cache / "gfs" / "a.bin").exists()


def test_values_on_the_command_line() -> None:
    assert parse_times(["latest"]) == (None,)
    assert [str(time) for time in parse_times(["2024-01-01,2024-01-02T06", "2024-01-01"])] == [
        "2024-01-01T00:00:00", "2024-01-02T06:00:00"]  # fmt: skip
    assert len(parse_times(["2024-01-01/2024-01-31T18/6h"])) == 124
    assert parse_duration("90m") == 1.5
    assert parse_duration("2d") == 48.0
    assert parse_options(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UsageError, match="twice"):
        parse_options(["a=1", "a=2"])


# Which source


@pytest.mark.parametrize(
    ("time", "key", "ladder", "why"),
    [
        (None, False, ("gfs",), "the latest"),
        ("2026-11-20T00", True, ("gfs",), "ERA5 follows about 6 days later"),
        ("2026-10-01T00", True, ("era5",), "there is a key"),
        ("2026-10-01T00", False, ("arco", "gfs"), "without a key"),
        ("1979-01-01T00", False, ("arco",), "without a key"),
        ("1979-01-01T00", True, ("era5",), "there is a key"),
    ],
)
def test_auto(
    time: str | None, key: bool, ladder: tuple[str, ...], why: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "now", lambda: NOW)
    if key:
        monkeypatch.setenv("CDSAPI_KEY", "x")
    found, note = ladder_of("auto", None if time is None else np.datetime64(time, "s"))
    assert found == ladder
    assert note is not None
    assert why in note
    assert ladder_of("auto", NOW, files=True) == (("file",), None)
    assert ladder_of("gfs, ifs", NOW) == (("gfs", "ifs"), None)


def test_a_ladder_goes_down_and_never_mixes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gfs = gfs_objects(gfs_lines((500, 850), JUNE, without=("t850",)), gfs_path(JUNE), JUNE)
    ifs = ifs_objects(ifs_path(JUNE), JUNE)
    request = Request((JUNE,), schema=Schema(weather.UPPER, (500, 850), weather.GROUND), options={"grid": "5"})
    with Server(gfs) as one, Server(ifs) as other:
        monkeypatch.setenv("WM2_GFS_ROOTS", one.url)
        monkeypatch.setenv("WM2_IFS_ROOTS", other.url)
        got = obtain(("gfs", "ifs"), request, Access(cache=cache))
        assert got.source == "ifs"
        assert all(other.url in url for url in got.urls)
        assert not list((cache / "gfs").glob("gfs*"))
        assert obtain(("ifs", "gfs"), request, Access(cache=cache)).pieces[0].cached
        other.fail("", slow_down(), always=True)
        with pytest.raises(RemoteError) as error:
            obtain(("gfs", "ifs"), Request((JUNE + np.timedelta64(6, "h"),), schema=request.schema,
                                           options=request.options), Access(cache=cache))  # fmt: skip
    assert "gfs for 2024-06-01T06" in str(error.value)
    assert "ifs for 2024-06-01T06" in str(error.value)


def test_a_ladder_of_what_is_not_there_yet(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "now", lambda: JUNE + np.timedelta64(1, "h"))
    with Server() as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        monkeypatch.setenv("WM2_IFS_ROOTS", server.url)
        with pytest.raises(NotYetError):
            obtain(("gfs", "ifs"), Request((JUNE,), options={"grid": "5"}), Access(cache=cache))


def test_max_age_of_a_given_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "now", lambda: JUNE + np.timedelta64(13, "h"))
    with pytest.raises(NotYetError, match="older than the 12 h"):
        obtain(("idealized",), Request((JUNE,)), Access(cache=cache, max_age_hours=12))


def test_from_python(cache: Path) -> None:
    result = fetch.fetch(Options(times=(JUNE,), source="idealized"))
    assert result.paths == (cache / "idealized" / "idealized_20240601T000000.nc",)


# Forecasts


@pytest.mark.parametrize("source", ["gfs", "ifs", "arco", "era5"])
def test_a_forecast_fetches_for_itself(
    source: str, cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from standin_cds import KEY, Cds

    time = np.datetime64("2024-01-01T00", "s") if source in ("arco", "gfs", "era5") else JUNE
    objects = {
        "gfs": gfs_objects(gfs_lines((100, 300, 500, 850, 1000)), gfs_path()),
        "ifs": ifs_objects(ifs_path(JUNE), JUNE),
        "arco": arco_objects(),
        "era5": {},
    }[source]
    text = str(time.astype("datetime64[h]"))
    with Server(objects) as server, Cds(server) as cds:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        monkeypatch.setenv("WM2_IFS_ROOTS", server.url)
        monkeypatch.setenv("WM2_ARCO_ROOT", server.url)
        monkeypatch.setenv("CDSAPI_URL", cds.api)
        monkeypatch.setenv("CDSAPI_KEY", KEY)
        option = [] if source == "arco" else ["--option", "grid=5"]
        arguments = ["forecast", "--init", text, "--days", "1", "--weights", str(weights), "--allow-untrained",
                     "--source", source, *option]  # fmt: skip
        assert run([*arguments, "--plan", "--json"]) == 0
        assert server.log == []
        planned = json.loads(capsys.readouterr().out)["reads"]
        assert all(read["cached"] is False for read in planned)
        assert run([*arguments, "--out", "a.nc"]) == 0, capsys.readouterr().err
        server.log.clear()
        cds.log.clear()
        assert run([*arguments, "--out", "b.nc", "--offline"]) == 0
        assert server.log + cds.log == []
    with xr.open_dataset("a.nc") as first, xr.open_dataset("b.nc") as second:
        assert first.attrs["initial_conditions_source"] == source
        assert server.url in first.attrs["initial_conditions_urls"]
        assert any(word in first.attrs["acknowledgement"] for word in ("NOAA", "ECMWF", "Copernicus"))
        assert first["time"].values[0] == time + np.timedelta64(6, "h")
        xr.testing.assert_equal(first, second)


def test_the_latest_forecast_has_its_time_in_its_name(
    cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "now", lambda: standins.TIME + np.timedelta64(5, "h"))
    arguments = ["forecast", "--init", "latest", "--hours", "6", "--weights", str(weights), "--allow-untrained",
                 "--option", "grid=5"]  # fmt: skip
    with Server(gfs_objects(gfs_lines((100, 300, 500, 850, 1000)), gfs_path())) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        assert run(arguments) == 0
        streams = capsys.readouterr()
        assert streams.out == "wm2_20240101T00.nc\n"
        assert "source gfs for the latest: ERA5 follows" in streams.err
        assert "the latest of gfs is 2024-01-01T00, 5 h 00 min old" in streams.err
        assert run(arguments) == 2
        assert "exists already" in capsys.readouterr().err
        assert run([*arguments, "--plan"]) == 2


@pytest.mark.parametrize("key", [True, False])
def test_a_new_user_without_a_network(
    key: bool, cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if key:
        monkeypatch.setenv("CDSAPI_KEY", "00000000-0000-0000-0000-000000000000")
    dead = "http://127.0.0.1:9"
    for name in ("WM2_GFS_ROOTS", "WM2_ARCO_ROOT", "CDSAPI_URL"):
        monkeypatch.setenv(name, dead)
    began = time.monotonic()
    assert run(["forecast", "--init", "2024-01-01T00", "--days", "14", "--weights", str(weights),
                "--allow-untrained"]) == 4  # fmt: skip
    text = capsys.readouterr().err
    assert "connection refused" in text
    assert dead in text
    assert f"--source {sources.OFFLINE_SOURCE}" in text
    assert time.monotonic() - began < 30, "nobody waits for a network that is not there"
    assert not list(tmp_path.glob("*.nc"))
