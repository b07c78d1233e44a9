"""GFS and IFS: what is picked from an index, where files may be, and that the fields arrive unharmed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import standins
import weather
from standins import (
    IFS_LEVELS,
    TIME,
    Line,
    Server,
    gfs_lines,
    gfs_message,
    gfs_objects,
    gfs_path,
    ifs_objects,
    ifs_path,
)

from wm2cli import sources
from wm2cli.cli import run
from wm2cli.errors import UsageError
from wm2cli.reading.inputs import open_files
from wm2cli.schema import GRAVITY, LEVELS_25, LEVELS_28, LEVELS_37, Schema
from wm2cli.sources import INITIAL_FIELDS, Request, gfs, ifs, open_source
from wm2cli.sources.indexed import Entry, merge
from wm2cli.sources.labels import labels_of

REAL = os.environ.get("WM2_REAL_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="needs the real data")

LATER = np.datetime64("2024-06-01T00", "s")
GFS = ["fetch", "--init", "2024-01-01T00", "--source", "gfs", "--option", "grid=5"]
IFS = ["fetch", "--init", "2024-06-01T00", "--source", "ifs", "--option", "grid=5"]


def all_labels(schema: Schema = INITIAL_FIELDS) -> tuple[tuple[str, float | None], ...]:
    known = {*schema.pressure, *schema.surface}
    return labels_of(Request((TIME,), schema=schema), "x", known)


@pytest.fixture(scope="module")
def gfs_server() -> Iterator[Server]:
    with Server(gfs_objects(gfs_lines(), gfs_path())) as made:
        yield made


@pytest.fixture(scope="module")
def ifs_server() -> Iterator[Server]:
    with Server(ifs_objects(ifs_path(LATER), LATER)) as made:
        yield made


def paths_printed(capsys: pytest.CaptureFixture[str]) -> list[Path]:
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


# GFS


def test_gfs_fields_arrive_unharmed(
    gfs_server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WM2_GFS_ROOTS", gfs_server.url)
    gfs_server.log.clear()
    assert run(GFS) == 0
    (path,) = paths_printed(capsys)
    inventory = open_files([path])
    assert len(inventory.fields) == 133
    for name, level in all_labels():
        (found,) = inventory.find(name, level, TIME)
        scale = GRAVITY * 1200 if name == "z" else max(1.0, float(np.abs(weather.weather(name, level)).max()))
        assert np.allclose(found.read(), weather.weather(name, level), atol=1e-5 * scale), found.label
    entries = gfs.Gfs().select(gfs_server.objects[f"{gfs_path()}.idx"].decode(), all_labels(), TIME).entries
    assert len(gfs_server.seen(r"f000$")) == len(merge(entries)) == 2 + 3 * 25
    asked = sum(
        int(end) - int(start) + 1
        for start, end in (item.headers["Range"].removeprefix("bytes=").split("-") for item in gfs_server.seen("f000$"))
    )
    assert asked == path.stat().st_size, "not a byte more than needed is asked for"
    account = json.loads(path.with_name(f"{path.name}.wm2.json").read_text())
    assert account["urls"] == [f"{gfs_server.url}/{gfs_path()}"]
    assert len(account["parts"]) == 133


def test_gfs_a_cached_state_serves_a_smaller_one(
    gfs_server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WM2_GFS_ROOTS", gfs_server.url)
    assert run([*GFS, "--levels", "300,500,850"]) == 0
    first = capsys.readouterr().out
    gfs_server.log.clear()
    assert run([*GFS, "--levels", "500", "--variables", "z,t,t2m", "--offline"]) == 0
    assert capsys.readouterr().out == first
    assert run([*GFS, "--levels", "500,700", "--offline"]) == 4
    assert "gfs/5p00/2024-01-01T00 is not there" in capsys.readouterr().err
    assert gfs_server.log == []


def test_gfs_relative_humidity_where_there_is_no_other(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(gfs_objects(gfs_lines((500, 850), without=("q500",)), gfs_path())) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        assert run([*GFS, "--levels", "500,850"]) == 0
    streams = capsys.readouterr()
    assert "no specific humidity at 500 hPa: relative humidity was fetched" in streams.err
    inventory = open_files([Path(streams.out.strip())])
    assert inventory.levels("q") == (850.0,)
    assert inventory.levels("r") == (500.0,)


@pytest.mark.parametrize(
    ("time", "layouts"),
    [("2021-03-20T00", ["old"]), ("2021-03-22T06", ["old", "v16"]), ("2021-03-22T12", ["v16", "old"]),
     ("2024-01-01T00", ["v16"]), ("2026-11-20T12", ["v16", "v17"])],
)  # fmt: skip
def test_gfs_layouts(time: str, layouts: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = np.datetime64(time, "s")
    monkeypatch.setattr(sources, "now", lambda: np.datetime64("2026-11-21T00", "s"))
    monkeypatch.setattr(gfs, "now", sources.now)
    places = gfs.Gfs().places(moment, "0p25")
    recent = time.startswith("2026")
    roots = [root for root in gfs.ROOTS if recent or "nomads" not in root]
    assert [place.data for place in places] == [
        root + gfs_path(moment, "0p25", layout) for root in roots for layout in layouts
    ]
    assert all(place.index == f"{place.data}.idx" for place in places)


@pytest.mark.parametrize("layout", ["v16", "v17"])
def test_gfs_version_17_is_found(layout: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = np.datetime64("2026-11-20T12", "s")
    lines = gfs_lines((500,), time)
    with Server(gfs_objects(lines, gfs_path(time, "5p00", layout), time)) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        monkeypatch.setattr(sources, "now", lambda: time + np.timedelta64(5, "h"))
        assert run([*GFS[:2], "2026-11-20T12", *GFS[3:], "--levels", "500"]) == 0


def test_gfs_index_decoys() -> None:
    """Names that begin alike, other levels, windows, and fields that share a message."""
    lines = ["1:0:d=2024010100:TMP:2 mb:anl:", "2:100:d=2024010100:TMP:2 m above ground:6-7 hour max fcst:",
             "3:200:d=2024010100:TMP:2 m above ground:0 hour fcst:", "4:300:d=2024010100:UGRD:100 mb:anl:",
             "5.1:400:d=2024010100:UGRD:100 m above ground:anl:", "5.2:400:d=2024010100:VGRD:100 m above ground:anl:",
             "6:600:d=2024010100:TCDC:entire atmosphere:0-0 day ave fcst:",
             "7:700:d=2024010100:TCDC:entire atmosphere:anl:"]  # fmt: skip
    labels = (("t2m", None), ("u100", None), ("v100", None), ("tcc", None), ("u", 100.0))
    chosen = gfs.Gfs().select("\n".join(lines), labels, TIME)
    assert {entry.label: (entry.start, entry.length) for entry in chosen.entries} == {
        ("t2m", None): (200, 100), ("u100", None): (400, 200), ("v100", None): (400, 200), ("tcc", None): (700, None),
        ("u", 100.0): (300, 100),
    }  # fmt: skip
    assert chosen.missing == ()


def test_runs_by_hand() -> None:
    entries = [Entry(("t", 500.0), 30, 10), Entry(("u", 500.0), 0, 10), Entry(("v", 500.0), 10, 10),
               Entry(("q", 500.0), 50, None)]  # fmt: skip
    assert [[entry.start for entry in run] for run in merge(entries)] == [[0, 10], [30], [50]]


@needs_real_data
def test_the_real_gfs_index_selects_exactly_the_messages_needed() -> None:
    text = (Path(str(REAL)) / "gfs_0p25_20221014_t00z_f000.idx").read_text()
    time = np.datetime64("2022-10-14T00", "s")
    lines = {int(line.split(":")[1]): line for line in text.splitlines()}
    chosen = gfs.Gfs().select(text, all_labels(), time)
    assert (chosen.missing, chosen.notes, len(chosen.entries)) == ((), (), 133)
    starts = sorted(lines)
    for entry in chosen.entries:
        name, level = entry.label
        parameter, where = lines[entry.start].split(":")[3:5]
        assert parameter == (standins.GFS_NAMES[name] if level else standins.GFS_GROUND[name].split(":")[0])
        assert where == (f"{level:g} mb" if level else standins.GFS_GROUND[name].split(":")[1])
        assert entry.start + (entry.length or 0) == starts[starts.index(entry.start) + 1]
    more = gfs.Gfs().select(text, all_labels(Schema(INITIAL_FIELDS.pressure, LEVELS_28, INITIAL_FIELDS.surface)), time)
    assert (more.missing, len(more.entries)) == ((), 133)
    assert "lacks the levels 125 175 875 hPa" in more.notes[0]
    total = sum(entry.length or 0 for entry in chosen.entries)
    runs = merge(chosen.entries)
    assert total < 130e6
    assert len(runs) <= 82


@needs_real_data
def test_the_plan_of_gfs_is_near_the_real_index() -> None:
    text = (Path(str(REAL)) / "gfs_0p25_20221014_t00z_f000.idx").read_text()
    chosen = gfs.Gfs().select(text, all_labels(), np.datetime64("2022-10-14T00", "s"))
    (piece,) = open_source("gfs").plan(Request((np.datetime64("2022-10-14T00", "s"),)))
    assert piece.size == pytest.approx(sum(entry.length or 0 for entry in chosen.entries), rel=0.1)
    assert piece.requests == pytest.approx(len(merge(chosen.entries)) + 1, rel=0.1)


@needs_real_data
def test_the_real_index_of_a_forecast_step_has_no_analysis() -> None:
    text = (Path(str(REAL)) / "gfs_0p25_20221014_t06z_f021.idx").read_text()
    chosen = gfs.Gfs().select(text, all_labels(), np.datetime64("2022-10-14T06", "s"))
    assert chosen.entries == ()
    assert len(chosen.missing) == len(all_labels())


@pytest.mark.parametrize("source", ["gfs", "ifs"])
def test_what_cannot_be_served_is_said_before_the_network(source: str) -> None:
    made = open_source(source)
    with pytest.raises(UsageError) as error:
        made.plan(Request((LATER,), schema=Schema(("z", "r"), (500,), ("t2m", "lsp", "sp"))))
    assert "lsp (Large-scale precipitation)" in str(error.value)
    with pytest.raises(UsageError, match="starts at 00, 06, 12 and 18"):
        made.plan(Request((np.datetime64("2024-06-01T03", "s"),)))
    with pytest.raises(UsageError, match="no grid of '7' degrees"):
        made.plan(Request((LATER,), options={"grid": "7"}))
    with pytest.raises(UsageError) as error:
        made.plan(Request((LATER,), options={"girt": "1", "b": "2"}))
    assert "girt" in str(error.value)
    assert "b:" in str(error.value)


# IFS


def test_ifs_fields_arrive_and_what_lacks_is_said(
    ifs_server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WM2_IFS_ROOTS", ifs_server.url)
    assert run(IFS) == 0
    streams = capsys.readouterr()
    assert "lack the levels 10 30 70 350 450 550 650 750 800 900 950 975 hPa" in streams.err
    assert "CC-BY 4.0" in streams.err
    inventory = open_files([Path(streams.out.strip())])
    assert inventory.levels("z") == tuple(map(float, IFS_LEVELS))
    for name in (*weather.UPPER, *weather.GROUND):
        level = 500.0 if name in weather.UPPER else None
        (found,) = inventory.find(name, level, LATER)
        expected = weather.weather(name, level)
        assert np.allclose(found.read(), expected, atol=2e-5 * (expected.max() - expected.min()) + 1e-9), name


def test_ifs_takes_the_levels_around() -> None:
    rows = [{"date": "20240601", "time": "0000", "type": "fc", "step": "0", "levtype": "pl", "levelist": str(level),
             "param": "t", "_offset": 10 * level, "_length": 10} for level in (50, 200, 500)]  # fmt: skip
    text = "\n".join(map(json.dumps, rows))

    def levels(*wanted: float) -> list[float | None]:
        return sorted(
            entry.label[1] or 0 for entry in ifs.Ifs().select(text, [("t", w) for w in wanted], LATER).entries
        )

    assert levels(200) == [200]
    assert levels(300) == [200, 500]
    assert levels(300, 400) == [200, 500]
    assert levels(10) == [50]
    assert levels(1000) == [500]
    assert ifs.Ifs().select(text, [("u", 500.0), ("t2m", None)], LATER).missing == ("u500", "t2m")


@pytest.mark.parametrize(
    ("time", "path"),
    [("2024-01-15T00", "20240115/00z/0p4-beta/oper/20240115000000-0h-oper-fc"),
     ("2024-02-10T12", "20240210/12z/0p25/oper/20240210120000-0h-oper-fc"),
     ("2024-02-28T00", "20240228/00z/0p25/oper/20240228000000-0h-oper-fc"),
     ("2024-02-28T06", "20240228/06z/ifs/0p25/scda/20240228060000-0h-scda-fc"),
     ("2025-08-01T12", "20250801/12z/ifs/0p25/oper/20250801120000-0h-oper-fc"),
     ("2026-05-12T00", "20260512/00z/ifs/0p25/oper/20260512000000-0h-oper-fc"),
     ("2026-05-12T06", "20260512/06z/ifs/0p25/oper/20260512060000-0h-oper-fc")],
)  # fmt: skip
def test_ifs_layouts(time: str, path: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifs, "now", lambda: np.datetime64("2026-11-21T00", "s"))
    grid = "0p4" if "0p4" in path else "0p25"
    places = ifs.Ifs().places(np.datetime64(time, "s"), grid)
    assert [place.data for place in places] == [f"{root}{path}.grib2" for root in ifs.ROOTS[:2]]
    assert places[0].index == f"{ifs.ROOTS[0]}{path}.index"


def test_ifs_before_a_quarter_degree(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert run(["fetch", "--init", "2024-01-01T00", "--source", "ifs"]) == 2
    assert "0.25 degrees since 2024-02-01" in capsys.readouterr().err
    assert run(["fetch", "--init", "2024-01-01T00", "--source", "ifs", "--option", "grid=0.4", "--plan"]) == 0


@pytest.mark.parametrize("text", ["", "{", '{"date": "20240601"}', "1:0:d=2024060100:TMP:500 mb:anl:"])
def test_ifs_broken_indexes(text: str) -> None:
    with pytest.raises(ValueError, match=r"empty|line 1"):
        ifs.Ifs().select(text, [("t", 500.0)], LATER)


def test_ifs_index_of_another_day() -> None:
    row = {"date": "20240531", "time": "0000", "step": "0", "levtype": "sfc", "param": "2t", "_offset": 0, "_length": 1}
    with pytest.raises(ValueError, match="it is of 2024-05-31T00"):
        ifs.Ifs().select(json.dumps(row), [("t2m", None)], LATER)


@needs_real_data
def test_the_real_ecmwf_index_selects_exactly_the_messages_needed() -> None:
    text = (Path(str(REAL)) / "ecmwf_aifs_single_20250301T00_0h.index").read_text()
    rows = {row["_offset"]: row for row in map(json.loads, text.splitlines())}
    time = np.datetime64("2025-03-01T00", "s")
    names = ("t2m", "d2m", "u10", "v10", "msl")
    chosen = ifs.Ifs().select(text, all_labels(Schema(weather.UPPER, LEVELS_25, names)), time)
    assert chosen.missing == ()
    assert len(chosen.entries) == 5 * 13 + len(names)
    for entry in chosen.entries:
        row = rows[entry.start]
        assert row["_length"] == entry.length
        assert row["param"] in (entry.label[0], ifs._SURFACE.get(entry.label[0]))
        assert row.get("levelist") == (None if entry.label[1] is None else f"{entry.label[1]:g}")


@needs_real_data
def test_the_real_ifs_index_of_2026() -> None:
    text = (Path(str(REAL)) / "ecmwf_ifs_oper_0p25_20260524T00_0h.first5.index").read_text()
    chosen = ifs.Ifs().select(text, [("msl", None), ("t2m", None)], np.datetime64("2026-05-24T00", "s"))
    assert [(entry.start, entry.length) for entry in chosen.entries] == [(897075, 523506)]
    assert chosen.missing == ("t2m",)


def test_the_real_client_of_ecmwf_takes_the_stand_in_for_the_archive(
    ifs_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the stand-in cannot drift to suit us."""
    monkeypatch.setenv("ECMWF_OPENDATA_URLS", json.dumps({"aws": ifs_server.url}))  # read when it is imported
    opendata = pytest.importorskip("ecmwf.opendata")
    client = opendata.Client(source="aws", model="ifs", resol="5p00")
    target = tmp_path / "real.grib2"
    ifs_server.log.clear()
    client.retrieve(date=20240601, time=0, step=0, type="fc", stream="oper", levtype="pl", param=["t", "gh"],
                    levelist=[500, 850], target=str(target))  # fmt: skip
    inventory = open_files([target])
    assert {item.label for item in inventory.fields} == {"t500", "t850", "z500", "z850"}
    assert [item.status for item in ifs_server.seen("grib2$")] == [206, 206]


# Both


@pytest.mark.parametrize("bits", [0, 3])
def test_latest_is_the_newest_that_is_complete(
    bits: int, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 UTC is complete; of 18 UTC the index is there and the file ends too early, or lacks a field."""
    noon, evening = np.datetime64("2024-01-01T12", "s"), np.datetime64("2024-01-01T18", "s")
    monkeypatch.setattr(sources, "now", lambda: evening + np.timedelta64(250, "m"))
    objects = gfs_objects(gfs_lines((500,), noon), gfs_path(noon), noon)
    late = gfs_objects(gfs_lines((500,), evening, without=("v10",) if bits else ()), gfs_path(evening), evening)
    if not bits:
        late[gfs_path(evening)] = late[gfs_path(evening)][:-60000]
    with Server(objects | late) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        latest = [*GFS[:2], "latest", *GFS[3:], "--levels", "500"]
        assert run(latest) == 0
        streams = capsys.readouterr()
        assert "the latest of gfs is 2024-01-01T12, 10 h 10 min old" in streams.err
        assert "gfs_5p00_20240101T12" in streams.out
        assert run([*latest, "--max-age", "12h"]) == 0
        assert run([*latest, "--max-age", "8h"]) == 5
        assert "2024-01-01T12 is 10 h 10 min old" in capsys.readouterr().err
        assert run([*latest, "--max-age", "8h", "--plan"]) == 2
        assert run([*latest, "--offline"]) == 2


def test_latest_waits_for_a_younger_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wm2cli import fetch

    noon, evening = np.datetime64("2024-01-01T12", "s"), np.datetime64("2024-01-01T18", "s")
    monkeypatch.setattr(fetch, "_POLL", 0.05)
    monkeypatch.setattr(sources, "now", lambda: evening + np.timedelta64(230, "m"))
    late = gfs_objects(gfs_lines((500,), evening), gfs_path(evening), evening)
    with Server(gfs_objects(gfs_lines((500,), noon), gfs_path(noon), noon)) as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        timer = threading.Timer(0.5, lambda: server.objects.update(late))
        timer.start()
        assert run([*GFS[:2], "latest", *GFS[3:], "--levels", "500", "--max-age", "6h", "--wait", "1m"]) == 0
    assert "gfs_5p00_20240101T18" in capsys.readouterr().out


def test_latest_when_there_is_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server() as server:
        monkeypatch.setenv("WM2_IFS_ROOTS", server.url)
        assert run([*IFS[:2], "latest", *IFS[3:]]) == 5
    assert "no complete cycle of the last two days" in capsys.readouterr().err
    monkeypatch.setenv("WM2_IFS_ROOTS", "http://127.0.0.1:9")
    assert run([*IFS[:2], "latest", *IFS[3:]]) == 4


def test_the_future_is_not_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        monkeypatch.setenv("WM2_GFS_ROOTS", server.url)
        monkeypatch.setattr(sources, "now", lambda: TIME - np.timedelta64(1, "h"))
        assert run(GFS) == 5
        assert server.log == []


def test_no_two_messages_of_the_stand_in_are_alike() -> None:
    """Else an exchanged level would not be noticed by the tests above."""
    lines = [Line("", gfs_message(name, level)) for name, level in all_labels()]
    assert len({line.data for line in lines}) == len(lines)
    assert len(LEVELS_37) > len(LEVELS_25)
