"""ERA5 from the Climate Data Store and from ARCO: requests, the queue, and everything it may answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import weather
from standin_arco import arco_objects, pack
from standin_cds import KEY, Cds, made_but_504
from standins import Server, close_after, redirect, slow_down, status

from wm2cli import sources
from wm2cli.cli import run
from wm2cli.errors import UsageError
from wm2cli.reading.inputs import open_files
from wm2cli.schema import GRAVITY, Schema
from wm2cli.sources import Request, open_source
from wm2cli.sources.era5 import PRESSURE, SINGLE

TIME = np.datetime64("2024-01-01T00", "s")
ERA5 = ["fetch", "--init", "2024-01-01T00", "--source", "era5", "--option", "grid=5", "--levels", "500,850"]
ONE = [*ERA5, "--variables", "z,t"]
"""One request only."""
ARCO = ["fetch", "--init", "2024-01-01T00", "--source", "arco"]


@pytest.fixture
def cds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cds]:
    with Server() as files, Cds(files) as made:
        monkeypatch.setenv("CDSAPI_URL", made.api)
        monkeypatch.setenv("CDSAPI_KEY", KEY)
        yield made


def final_names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and ".part" not in str(path))


def test_fields_arrive_unharmed(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ERA5) == 0
    streams = capsys.readouterr()
    inventory = open_files([Path(line) for line in streams.out.splitlines()])
    assert len(inventory.fields) == 18
    for name in (*weather.UPPER, *weather.GROUND):
        for level in (500.0, 850.0) if name in weather.UPPER else (None,):
            (found,) = inventory.find(name, level, TIME)
            expected = weather.weather(name, level)
            assert np.allclose(found.read(), expected, atol=1e-4 * float(np.ptp(expected))), found.label
    assert "modified Copernicus" in streams.err
    levels, surface = (job["request"] for job in cds.jobs.values())
    assert levels == {
        "product_type": ["reanalysis"], "year": ["2024"], "month": ["01"], "day": ["01"], "time": ["00:00"],
        "variable": ["geopotential", "temperature", "u_component_of_wind", "v_component_of_wind", "specific_humidity"],
        "pressure_level": ["500", "850"], "data_format": "grib", "download_format": "unarchived", "grid": ["5", "5"],
    }  # fmt: skip
    assert "2m_temperature" in surface["variable"]
    assert "pressure_level" not in surface
    costs = [item.path for item in cds.log if item.method == "POST"]
    assert [path.rsplit("/", 1)[1] for path in costs] == ["costing", "execution"] * 2
    assert not list(cache.rglob(".*")), "nothing is left of the way there"


def test_the_key_goes_nowhere_else(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ERA5) == 0
    assert cds.files.log
    assert all("PRIVATE-TOKEN" not in item.headers for item in cds.files.log)
    assert all(KEY not in str(item.headers) + item.path for item in cds.files.log)
    assert all(item.headers.get("PRIVATE-TOKEN") == KEY for item in cds.log if "retrieve" in item.path)
    assert all(item.headers["User-Agent"].startswith("wm2/") for item in (*cds.log, *cds.files.log))
    written = [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in written)
    assert KEY not in capsys.readouterr().err


def test_the_key_does_not_follow_redirects(cds: Cds, cache: Path) -> None:
    cds.fail(r"processes/.*levels$", redirect(f"{cds.files.url}/processes"), always=True)
    assert run(ONE) == 4
    assert cds.files.log
    assert all("PRIVATE-TOKEN" not in item.headers for item in cds.files.log)


def test_the_plan_is_made_offline(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "--init", "2024-01-01T00", "--source", "era5", "--plan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [piece["key"].rsplit("/", 1)[1] for piece in document["pieces"]] == ["levels", "surface"]
    assert document["requests"] == 2
    assert document["bytes"] == pytest.approx(276e6, rel=0.05)


# Group 20 of the faults


def test_20_no_key(cds: Cds, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CDSAPI_KEY")
    assert run(ERA5) == 4
    text = capsys.readouterr().err
    assert "needs a key" in text
    assert "~/.cdsapirc" in text
    assert "CDSAPI_KEY" in text
    assert "--source arco" in text
    assert cds.log == []


def test_20_the_file_of_cdsapi_serves(cds: Cds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDSAPI_KEY")
    monkeypatch.delenv("CDSAPI_URL")
    (tmp_path / "cdsapirc").write_text(f"url: {cds.api}\nkey: {KEY}\n")
    assert run(ONE) == 0


@pytest.mark.parametrize(
    ("key", "said"), [("bad", "refused the key"), ("1234:abcd", "of the old form UID:KEY")], ids=["bad", "old"]
)
def test_20_a_key_that_is_no_good(
    key: str, said: str, cds: Cds, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDSAPI_KEY", key)
    assert run(ERA5) == 4
    text = capsys.readouterr().err
    assert said in text
    assert "copy the token from your profile" in text
    assert final_names(cache) == []
    assert cds.executions == 0


def test_20_the_old_address(cds: Cds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CDSAPI_URL", "https://cds.climate.copernicus.eu/api/v2")
    assert run(ERA5) == 4
    assert "https://cds.climate.copernicus.eu/api" in capsys.readouterr().err


def test_20_licence(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cds.licence = False
    assert run(ERA5) == 4
    text = capsys.readouterr().err
    assert f"the licence of {PRESSURE} is not accepted yet" in text
    assert f"{cds.url}/datasets/{PRESSURE}?tab=download#manage-licences" in text
    assert len(cds.seen("execution", "POST")) == 1, "it is not tried again"
    assert final_names(cache) == []


def test_20_too_large_is_split(cds: Cds, capsys: pytest.CaptureFixture[str]) -> None:
    cds.limit = 3
    assert run(ONE) == 0
    assert [job["request"]["variable"] for job in cds.jobs.values()] == [["geopotential"], ["temperature"]]
    inventory = open_files([Path(capsys.readouterr().out.strip())])
    assert {item.label for item in inventory.fields} == {"z500", "z850", "t500", "t850"}


def test_20_too_large_even_so(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cds.limit = 1
    assert run(ONE) == 4
    text = capsys.readouterr().err
    assert "costs 2, at most 1" in text
    assert cds.executions == 0


def test_20_rejected_then_accepted(cds: Cds) -> None:
    cds.fates = ["rejected", "rejected"]
    assert run(ONE) == 0
    assert cds.executions == 3


def test_20_failed(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cds.fates = ["failed"]
    assert run(ONE) == 4
    text = capsys.readouterr().err
    assert "the job failed: MARS returned no data" in text
    assert final_names(cache) == []
    assert run(ONE) == 0, "the next run does not come back to the failed job"
    assert cds.executions == 2


@pytest.mark.parametrize(("fates", "code"), [(["expired"], 0), (["expired", "expired"], 4)])
def test_20_results_expired(fates: list[str], code: int, cds: Cds) -> None:
    cds.fates = list(fates)
    assert run(ONE) == code
    assert cds.executions == 2


@pytest.mark.parametrize("off", [-5, 5])
def test_20_wrong_size(off: int, cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cds.size_off = off
    assert run(ONE) == 4
    assert "were announced" in capsys.readouterr().err
    assert len(cds.files.log) == 4
    assert final_names(cache) == []


def test_20_zip(cds: Cds, capsys: pytest.CaptureFixture[str]) -> None:
    cds.container = "zip"
    assert run(ONE) == 0
    inventory = open_files([Path(capsys.readouterr().out.strip())])
    assert {item.label for item in inventory.fields} == {"z500", "z850", "t500", "t850"}


@pytest.mark.parametrize("what", ["page", "half", "netcdf"])
def test_20_something_else(what: str, cds: Cds, cache: Path, tmp_path: Path) -> None:
    netcdf = weather.write_cds_new(tmp_path / "x.nc", ("z",), levels=(500, 850), times=(TIME,)).read_bytes()
    cds.spoil = {  # of the announced length, so that only the content can tell
        "page": lambda body: b"<html>" + body[6:],
        "half": lambda body: body[: len(body) // 2] + bytes(len(body) - len(body) // 2),
        "netcdf": lambda body: netcdf[: len(body)] + bytes(max(0, len(body) - len(netcdf))),
    }[what]
    assert run(ONE) in (3, 4)
    assert final_names(cache) == []


@pytest.mark.parametrize(
    ("versions", "said"),
    [({"": "0005"}, "era5: preliminary ERA5T (expver 0005)"), ({"t": "0005"}, "era5: t are preliminary ERA5T")],
)
def test_20_expver(versions: dict[str, str], said: str, cds: Cds, capsys: pytest.CaptureFixture[str]) -> None:
    cds.versions = versions
    assert run(ONE) == 0
    assert said in capsys.readouterr().err
    assert run([*ONE, "--offline"]) == 0
    assert said in capsys.readouterr().err, "what is in the cache is still preliminary"


def test_20_newer_than_the_last_date(
    cds: Cds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "now", lambda: np.datetime64("2026-11-21T00", "s"))
    assert run([*ONE[:2], "2026-11-18T00", *ONE[3:]]) == 5
    text = capsys.readouterr().err
    assert "it goes to 2026-11-15T23" in text
    assert cds.executions == 0


def test_21_the_answer_to_a_submission_gets_lost(cds: Cds) -> None:
    cds.fail("execution$", made_but_504(cds))
    assert run(ONE) == 0
    assert cds.executions == 1, "the job was found, and not made again"
    assert len(cds.seen("jobs$")) == 1


def test_21_a_submission_that_was_not_made_is_repeated(cds: Cds) -> None:
    cds.fail("execution$", status(504))
    assert run(ONE) == 0
    assert cds.executions == 1
    assert len(cds.seen("execution$", "POST")) == 2


def test_passing_troubles_of_the_service(cds: Cds) -> None:
    cds.fail(r"jobs/job-1$", slow_down(), status(429, Retry_After="0"), status(502))
    cds.files.fail("grib", close_after(5000), slow_down())
    assert run(ONE) == 0
    assert [item.status for item in cds.files.log] == [200, 503, 206]
    assert cds.files.log[2].headers["Range"].startswith("bytes=5000-")


def test_an_unreachable_service(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDSAPI_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("CDSAPI_KEY", KEY)
    assert run(ONE) == 4
    assert "cannot be reached (connection refused)" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_22_an_interrupted_wait_goes_on_with_the_same_job(how: signal.Signals, cds: Cds, cache: Path) -> None:
    cds.polls = 10**6
    code = "import sys; from wm2cli.cli import run; sys.exit(run(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *ONE], env=os.environ.copy())
    deadline = time.monotonic() + 60
    while not (cds.jobs and cds.jobs["job-1"]["looks"] > 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(how)
    child.wait(timeout=60)
    cds.polls = 0
    assert final_names(cache) in ([], [name for name in final_names(cache) if name.endswith(".lock")])
    assert run(ONE) == 0
    assert cds.executions == 1


def test_a_queue_that_takes_too_long(cds: Cds, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cds.polls = 10**6
    assert run([*ONE, "--option", "timeout=0.0001"]) == 4
    text = capsys.readouterr().err
    assert "job job-1 was not done within 0.0001 h" in text
    assert "run the same command again" in text
    cds.polls = 0
    assert run(ONE) == 0
    assert cds.executions == 1


def test_latest_is_the_end_of_the_catalogue(
    cds: Cds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "now", lambda: np.datetime64("2026-11-21T00", "s"))
    assert run([*ONE[:2], "latest", *ONE[3:]]) == 0
    assert "the latest of era5 is 2026-11-15T18" in capsys.readouterr().err


def test_static_fields(cds: Cds, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "--static", "--source", "era5", "--option", "grid=5"]) == 0
    inventory = open_files([Path(capsys.readouterr().out.strip())])
    assert {item.variable for item in inventory.fields} == {"orog", "lsm", "slt"}
    assert cds.jobs["job-1"]["dataset"] == SINGLE


def test_the_real_cdsapi_takes_the_stand_in_for_the_service(cds: Cds, tmp_path: Path) -> None:
    """So that the stand-in cannot drift to suit us: no code of wm2 is in the way here."""
    import cdsapi

    cds.files.fail("grib", close_after(2_000_000))
    request = {"product_type": ["reanalysis"], "variable": ["geopotential"], "year": ["2024"], "month": ["01"],
               "day": ["01"], "time": ["00:00"], "pressure_level": ["500"], "data_format": "grib"}  # fmt: skip
    client = cdsapi.Client(url=cds.api, key=KEY, quiet=True, progress=False, sleep_max=1, retry_max=3)
    target = client.retrieve(PRESSURE, request, str(tmp_path / "real.grib"))
    assert [item.label for item in open_files([Path(target)]).fields] == ["z500"]
    cds.licence = False
    with pytest.raises(Exception, match="required licences not accepted"):
        client.retrieve(PRESSURE, request, str(tmp_path / "other.grib"))


# ARCO


@pytest.fixture
def arco(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(arco_objects()) as made:
        monkeypatch.setenv("WM2_ARCO_ROOT", made.url)
        yield made


def test_arco_fields_arrive_unharmed(arco: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ARCO, "--static"]) == 0
    streams = capsys.readouterr()
    inventory = open_files([Path(line) for line in streams.out.splitlines()])
    for name in (*weather.UPPER, *weather.GROUND, "orog", "lsm", "slt"):
        level = 550.0 if name in weather.UPPER else None
        (found,) = inventory.find(name, level)
        expected = weather.weather(name, level)
        assert np.allclose(found.read(), expected, atol=1e-6 * float(np.abs(expected).max())), name
    assert inventory.times() == (TIME,)
    assert "by way of ARCO-ERA5" in streams.err
    arco.log.clear()
    assert run([*ARCO, "--static", "--offline"]) == 0
    assert arco.log == []


def test_arco_what_is_absent_or_empty_is_an_error(
    arco: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ARCO[:2], "2024-01-01T03", *ARCO[3:]]) == 3
    assert "geopotential/8.0.0.0: is not there" in capsys.readouterr().err
    empty = np.full((1, weather.LAT.size, weather.LON.size), np.nan)
    arco.objects["total_cloud_cover/11.0.0"] = pack(empty)
    assert run([*ARCO[:2], "2024-01-01T06", *ARCO[3:]]) == 3
    text = capsys.readouterr().err
    assert "arco_20240101T06" in text
    assert "tcc has 2664 missing" in text
    assert final_names(cache) == []


def test_arco_a_damaged_chunk(arco: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arco.objects["temperature/5.0.0.0"] = arco.objects["temperature/5.0.0.0"][:5000]
    assert run(ARCO) == 3
    assert "temperature/5.0.0.0: is damaged" in capsys.readouterr().err
    assert final_names(cache) == []


def test_arco_behind_its_end(arco: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ARCO[:2], "2024-01-02T00", *ARCO[3:]]) == 5
    assert "it goes to 2024-01-01T23" in capsys.readouterr().err
    assert run([*ARCO[:2], "latest", *ARCO[3:]]) == 0
    assert "the latest of arco is 2024-01-01T06" in capsys.readouterr().err


def test_arco_preliminary(arco: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arco.objects |= {".zmetadata": arco_objects(stop="2023-12-31")[".zmetadata"]}
    assert run(ARCO) == 0
    assert "arco: preliminary ERA5T" in capsys.readouterr().err


def test_arco_breaks_off_and_goes_on(arco: Server, cache: Path) -> None:
    arco.fail("^temperature/", close_after(20000), close_after(20000), close_after(20000), close_after(20000))
    assert run(ARCO) == 4
    assert final_names(cache) == []
    before = len(arco.seen("geopotential/"))
    assert run(ARCO) == 0
    assert len(arco.seen("geopotential/")) == before, "what was complete is not asked for again"
    assert arco.seen("^temperature/")[-1].headers["Range"] == "bytes=80000-"


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]"])
def test_arco_no_group(body: bytes, arco: Server) -> None:
    arco.objects[".zmetadata"] = body
    assert run(ARCO) == 4


def test_arco_and_era5_agree(arco: Server, cds: Cds, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weather by two ways: GRIB with units of its archive, and Zarr."""
    assert run(["fetch", "--static", "--source", "era5", "--option", "grid=5"]) == 0
    assert run(["fetch", "--static", "--source", "arco"]) == 0
    one, two = (open_files([Path(line)]) for line in capsys.readouterr().out.splitlines())
    (first,), (second,) = one.find("orog"), two.find("orog")
    assert np.allclose(first.read(), second.read(), atol=0.05)
    assert float(np.abs(second.read()).max()) < 9000 / GRAVITY * 10


@pytest.mark.parametrize("source", ["era5", "arco"])
def test_what_era5_cannot_have(source: str) -> None:
    made = open_source(source)
    with pytest.raises(UsageError, match="since 1940"):
        made.plan(Request((np.datetime64("1939-12-31T00", "s"),)))
    with pytest.raises(UsageError, match="since 1940"):
        made.plan(Request((np.datetime64("2024-01-01T00:30", "s"),)))
    with pytest.raises(UsageError, match="no such fields"):
        made.plan(Request((TIME,), schema=Schema((), (), ("lsp_6h",))))
