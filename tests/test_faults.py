"""Everything that goes wrong between here and an archive: exit code, message, attempts, and what is left on disk.

The numbers are those of the groups of faults; each drives the program through a local server that speaks the real
protocol. GFS stands for the sources that read byte ranges; faults of the Climate Data Store are in `test_era5`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import standins
import weather
from standins import (
    Action,
    Handler,
    Line,
    Server,
    close_after,
    drip,
    gfs_lines,
    gfs_message,
    gfs_objects,
    gfs_path,
    ignore_range,
    page,
    redirect,
    shift_range,
    slow_down,
    stall_after,
    status,
    wrong_length,
)

from wm2cli import fetch, sources
from wm2cli.cli import run

PATH = gfs_path()
DATA, INDEX = r"f000$", r"\.idx$"
FETCH = ["fetch", "--init", "2024-01-01T00", "--source", "gfs", "--option", "grid=5", "--levels", "500,850"]
RUNS = 8
"""Ranges of these fields in the stand-in's file: msl; z with t, q, u with v at two levels; the ground."""


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(gfs_objects(gfs_lines((500, 850)), PATH)) as made:
        monkeypatch.setenv("WM2_GFS_ROOTS", made.url)
        yield made


def lose_patience(cache: Path) -> None:
    """Waits one second for a byte, for faults that are about that; else a busy machine would fail other tests."""
    path = cache.parent / "config.toml"
    path.write_text(path.read_text().replace("read_seconds = 10.0", "read_seconds = 1.0"))


def final_names(cache: Path) -> list[str]:
    """Everything a reader of the cache could take for complete."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and ".part" not in str(path)
                  and not path.name.startswith("."))  # fmt: skip


def good(cache: Path) -> str:
    """The sha256 of the only complete piece."""
    (path,) = cache.glob("gfs/*.grib2")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the piece when nothing goes wrong."""
    wanted = {f"{standins.GFS_NAMES[name]}:{level} mb" for name in weather.UPPER for level in (500, 850)}
    wanted |= set(standins.GFS_GROUND.values())
    data = b"".join(line.data for line in gfs_lines((500, 850)) if line.words in wanted and line.forecast == "anl")
    return hashlib.sha256(data).hexdigest()


PASSING: dict[str, tuple[str, Sequence[Action | None], int]] = {
    "1 503 twice": (DATA, (slow_down(), slow_down()), 2),
    "2 429 with Retry-After": (DATA, (status(429, Retry_After="1"),), 1),
    "3 connection closed after some bytes": (DATA, (close_after(100),), 1),
    "4 Content-Length larger than the body": (DATA, (wrong_length(10),), 0),
    "4 Content-Length smaller than the body": (DATA, (wrong_length(-10),), 1),
    "5 stall": (DATA, (stall_after(50, 3.0),), 1),
    "6 slow drip": (DATA, (drip(5, 0.05),), 0),
    "8 302 to a page, then the data": (DATA, (redirect("/login"),), 1),
    "9 200 with a page, then the data": (DATA, (page(),), 1),
    "9 200 with a page for the index": (INDEX, (page(),), 1),
    "10 Range ignored": (DATA, (ignore_range(), ignore_range(), ignore_range()), 0),
    "11 wrong start of Content-Range": (DATA, (shift_range(7),), 1),
}


@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_pass(
    fault: str, server: Server, cache: Path, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, actions, more = PASSING[fault]
    server.objects["login"] = b"<html>log in</html>"
    server.fail(pattern, *actions)
    if fault.startswith("5"):
        lose_patience(cache)
    began = time.monotonic()
    assert run(FETCH) == 0, capsys.readouterr().err
    assert good(cache) == expected
    assert len(server.seen(DATA)) == RUNS + (more if pattern == DATA else 0)
    assert len(server.seen(INDEX)) == 1 + (more if pattern == INDEX else 0)
    assert not list(cache.rglob("*.part")), "what is complete leaves nothing behind"
    if fault.startswith("2"):
        assert time.monotonic() - began >= 1.0
    if fault.startswith(("3", "5")):
        again = [item for item in server.seen(DATA) if "If-Range" in item.headers]
        first = server.seen(DATA)[0].headers["Range"]
        start = int(re.findall(r"\d+", first)[0])
        resumed = {item.headers["Range"].split("-")[0] for item in again}
        assert f"bytes={start + (100 if fault.startswith('3') else 50)}" in resumed


LASTING: dict[str, tuple[str, Action, int, str, int]] = {
    "1 503 for ever": (DATA, slow_down(), 4, "503", 4),
    "2 429 for ever": (INDEX, status(429, Retry_After="0"), 4, "429", 4),
    "3 closed for ever": (DATA, close_after(10), 4, "broke off", 4),
    "5 stall for ever": (INDEX, stall_after(10, 3.0), 4, "no byte came in time", 4),
    "8 302 to a page for ever": (INDEX, redirect("/login"), 4, "web page instead of data", 4),
    "9 a page for ever": (DATA, page(), 4, "web page instead of data", 4),
    "11 wrong ranges for ever": (DATA, shift_range(7), 4, "sent bytes from", 4),
    "14 416 for ever": (DATA, status(416), 4, "shorter than expected", 2),
    "400": (DATA, status(400), 4, "400", 1),
}


@pytest.mark.parametrize("fault", LASTING)
def test_faults_that_stay(fault: str, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern, action, code, said, attempts = LASTING[fault]
    server.objects["login"] = b"<html>log in</html>"
    server.fail(pattern, action, always=True)
    if fault.startswith("5"):
        lose_patience(cache)
    assert run(FETCH) == code
    text = capsys.readouterr().err
    assert said in text
    assert "gfs for 2024-01-01T00" in text
    assert f"{server.url}/{PATH}" in text
    assert "hint:" in text
    assert len(server.seen(pattern)) == attempts
    assert final_names(cache) == []


def test_7_not_ready_then_present(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch, "_POLL", 0.02)
    monkeypatch.setattr(sources, "now", lambda: standins.TIME + np.timedelta64(3, "h"))
    server.fail(INDEX, status(403), status(404), status(403))
    assert run(FETCH) == 5
    text = capsys.readouterr().err
    assert "gfs for 2024-01-01T00 is not published yet" in text
    assert "expected about 2024-01-01T03:36 UTC" in text
    assert "--wait" in text
    assert final_names(cache) == []
    assert run([*FETCH, "--wait", "1m"]) == 0
    assert len(server.seen(INDEX)) == 4


def test_7_what_is_old_and_absent_is_never_waited_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FETCH[:2], "2024-01-02T00", *FETCH[3:], "--wait", "1h"]) == 4
    assert "is in none of the archives" in capsys.readouterr().err


def test_8_9_the_next_mirror_helps(cache: Path, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = gfs_objects(gfs_lines((500, 850)), PATH)
    with Server(objects) as bad, Server(objects) as other:
        bad.fail(DATA, page(), always=True)
        monkeypatch.setenv("WM2_GFS_ROOTS", f"{bad.url},{other.url}")
        assert run(FETCH) == 0
        assert good(cache) == expected
        assert len(other.seen(DATA)) == RUNS


def test_12_the_object_changes_on_the_way(server: Server, cache: Path, expected: str) -> None:
    def change(handler: Handler, body: bytes | None) -> bool:
        server.tags[PATH] = '"other"'
        return False

    server.fail(DATA, None, None, change)
    assert run(FETCH) == 0
    assert good(cache) == expected
    tags = [item.headers.get("If-Range") for item in server.seen(DATA)]
    assert tags.count('"other"') == RUNS - 1, "all ranges but the first are asked for with the new tag"
    assert len(server.seen(INDEX)) == 2, "the index is read anew as well"


@pytest.mark.parametrize("alone", [True, False])
def test_13_zero_bytes(
    alone: bool, server: Server, cache: Path, expected: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with Server({**server.objects, PATH: b""}) as empty:
        monkeypatch.setenv("WM2_GFS_ROOTS", empty.url if alone else f"{empty.url},{server.url}")
        assert run(FETCH) == (4 if alone else 0)
        if alone:
            assert "shorter than expected" in capsys.readouterr().err
            assert final_names(cache) == []
        else:
            assert good(cache) == expected


def stale(text: bytes, off: int) -> bytes:
    return re.sub(rb"^(\d+):(\d+):", lambda found: b"%s:%d:" % (found[1], int(found[2]) + off), text, flags=re.M)


def test_15_a_stale_index_is_read_again_and_then_refused(
    server: Server, cache: Path, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = stale(server.objects[f"{PATH}.idx"], 7)
    server.fail(INDEX, status(200, old))
    assert run(FETCH) == 0
    assert good(cache) == expected
    assert len(server.seen(INDEX)) == 2
    server.objects[f"{PATH}.idx"] = old
    shutil.rmtree(cache)
    assert run(FETCH) == 4
    text = capsys.readouterr().err
    assert "are no GRIB message" in text
    assert final_names(cache) == []


INDEXES = {
    "crlf": (0, ""),
    "empty": (4, "it is empty"),
    "half a line": (4, "is no index"),
    "without the last": (4, "hold a message of 8171 bytes"),
    "page": (4, "web page"),
    "other day": (4, "it is of 2023123100"),
    "binary": (4, "is no index"),
}


@pytest.mark.parametrize("how", INDEXES)
def test_16_indexes(how: str, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = INDEXES[how]
    text = server.objects[f"{PATH}.idx"]
    ground = text.split(b"\n")
    last = next(number for number, line in enumerate(ground) if b":TCDC:entire atmosphere:anl" in line)
    server.objects[f"{PATH}.idx"] = {
        "crlf": text.replace(b"\n", b"\r\n"),
        "empty": b"",
        "half a line": text[: len(text) // 2 + 5],
        "without the last": b"\n".join(ground[: last + 1]) + b"\n",
        "page": b"<!DOCTYPE html><html>",
        "other day": text.replace(b"d=2024010100", b"d=2023123100"),
        "binary": bytes(range(256)),
    }[how]
    assert run(FETCH) == code
    assert said in capsys.readouterr().err
    assert bool(final_names(cache)) == (code == 0)


@pytest.mark.parametrize(("hours", "code"), [(3, 5), (1000, 3)])
def test_17_a_message_is_missing(
    hours: int, code: int, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sources, "now", lambda: standins.TIME + np.timedelta64(hours, "h"))
    server.objects |= gfs_objects(gfs_lines((500, 850), without=("u850", "d2m", "q500", "r500")), PATH)
    assert run(FETCH) == code
    text = capsys.readouterr().err
    assert "lacks u850, q500, d2m" in text
    assert final_names(cache) == []


@pytest.mark.parametrize("equal", [True, False])
def test_18_a_message_twice(equal: bool, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = gfs_lines((500, 850))
    twin = gfs_message("t", 500) if equal else gfs_message("t", 850, keys=Level500())
    server.objects |= gfs_objects([*lines, Line("TMP:500 mb", twin)], PATH)
    assert run(FETCH) == (0 if equal else 3)
    if not equal:
        assert "t500 is there 2 times, with different values" in capsys.readouterr().err
        assert final_names(cache) == []


class Level500(dict[str, int]):
    """Keys that turn a message into one of 500 hPa; a mapping that can be a key of the store of messages."""

    def __init__(self) -> None:
        super().__init__(scaledValueOfFirstFixedSurface=50000)

    def __hash__(self) -> int:  # type: ignore[override]
        return 500


def edited(words: str, change: Callable[[bytes], bytes]) -> list[Line]:
    return [
        Line(words, change(line.data)) if (line.words, line.forecast) == (words, "anl") else line
        for line in gfs_lines((500, 850))
    ]


def flip(data: bytes) -> bytes:
    return data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


def other(name: str = "t", level: float | None = 500.0, **how: object) -> Callable[[bytes], bytes]:
    return lambda data: weather.encode(name, level, style="gfs", **{"time": standins.TIME, **how})  # type: ignore[arg-type]


def with_hole() -> np.ndarray:
    values = weather.weather("t", 500)
    values[3, 5] = np.nan
    return values


GRIB: dict[str, tuple[str, Callable[[bytes], bytes], int, str]] = {
    "no end marker": ("TMP:500 mb", lambda data: data[:-4] + b"0000", 4, "do not end with 7777"),
    "wrong total length": ("TMP:500 mb", lambda data: data[:8] + (9).to_bytes(8, "big") + data[16:], 4, "of 9 bytes"),
    "half a message": ("TMP:500 mb", lambda data: data[: len(data) // 2], 4, "hold a message of"),
    "other date": ("TMP:500 mb", other(time=standins.TIME - np.timedelta64(1, "D")), 3, "it is there from 2023-12-31"),
    "a forecast": ("TMP:500 mb", other(step=6), 3, "it is there from 2023-12-31T18 for 2024-01-01T00"),
    "other grid": ("TMP:500 mb", other(lat=weather.LAT[::2], lon=weather.LON[::2]), 3, "t500 is on 19x36"),
    "other level": ("TMP:500 mb", other(level=700.0), 3, "t500 is not there"),
    "other parameter": ("TMP:500 mb", other("u"), 3, "t500 is not there"),
    "missing points": ("TMP:500 mb", other(values=with_hole()), 3, "t500 has 1 missing"),
    "impossible values": ("TMP:500 mb", other(values=weather.weather("t", 500) - 273.15), 3, "t500 spans"),
    "cloud as fraction": ("TCDC:entire atmosphere", other("tcc", None, values=weather.weather("tcc") / 100), 3,
                          "tcc is 0.0"),
    "east at 180": ("TMP:500 mb", other(from_lon=180.0), 0, ""),
    "south to north": ("TMP:500 mb", other(south_first=True), 0, ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", GRIB)
def test_19_messages(fault: str, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, change, code, said = GRIB[fault]
    server.objects |= gfs_objects(edited(words, change), PATH)
    assert run(FETCH) == code
    assert said in capsys.readouterr().err
    if code:
        assert final_names(cache) == []
    else:
        from wm2cli.reading.inputs import open_files

        (found,) = open_files([next(cache.glob("gfs/*.grib2"))]).find("t", 500.0)
        assert np.allclose(found.read(), weather.weather("t", 500), atol=1e-3)


def test_19_a_flipped_byte_is_seen_later_but_not_at_once(
    server: Server, cache: Path, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """GRIB has no checksum: a byte that flips on the server goes unnoticed, one that flips here does not."""
    server.objects |= gfs_objects(edited("TMP:500 mb", flip), PATH)
    assert run(FETCH) == 0
    assert good(cache) != expected
    (path,) = cache.glob("gfs/*.grib2")
    data = path.read_bytes()
    path.write_bytes(flip(data))
    server.log.clear()
    assert run([*FETCH, "--offline"]) == 4
    assert "is damaged" in capsys.readouterr().err
    assert run(FETCH) == 0
    assert len(server.seen(DATA)) == RUNS
    assert path.read_bytes() == data


CHILD = [sys.executable, "-c", "import sys; from wm2cli.cli import run; sys.exit(run(sys.argv[1:]))"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_22_killed_in_the_middle(how: signal.Signals, server: Server, cache: Path, expected: str) -> None:
    server.fail(DATA, None, None, None, stall_after(10, 0.4), always=True)
    child = subprocess.Popen([*CHILD, *FETCH], env=os.environ.copy(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(cache.glob("gfs/.*.part/*-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(how)
    child.wait(timeout=60)
    assert child.stderr is not None
    child.stderr.close()
    assert child.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    assert final_names(cache) == []
    server.faults.clear()
    server.log.clear()
    assert run(FETCH) == 0
    assert good(cache) == expected
    assert len(server.seen(DATA)) == RUNS - 3, "what was there is not asked for again"
    assert all("If-Range" in item.headers for item in server.seen(DATA))


def test_23_two_at_once(server: Server, cache: Path, expected: str) -> None:
    server.delay = 0.1
    children = [subprocess.Popen([*CHILD, *FETCH], env=os.environ.copy(), stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(server.seen(DATA)) == RUNS
    assert len(server.seen(INDEX)) == 1
    assert good(cache) == expected
    assert not list(cache.rglob("*.lock"))


def test_24_disk_full(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.replace

    def full(source: str, target: str) -> None:
        if "-" in Path(target).name and ".part" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert run(FETCH) == 7
    text = capsys.readouterr().err
    assert "No space left on device" in text
    assert "free some space" in text
    assert final_names(cache) == []
    assert not list(cache.rglob("*.part")), "a full disk needs the room"


def test_24_no_room_is_seen_before(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run(FETCH) == 7
    assert server.log == []


def test_25_tls(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WM2_GFS_ROOTS", server.url.replace("http://", "https://"))
    assert run(FETCH) == 4
    text = capsys.readouterr().err
    assert "encrypted connection failed" in text
    assert "REQUESTS_CA_BUNDLE" in text
    assert final_names(cache) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_25_a_certificate_nobody_vouches_for(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Server(server.objects) as trusted:
        trusted.http.socket = context.wrap_socket(trusted.http.socket, server_side=True)
        monkeypatch.setenv("WM2_GFS_ROOTS", trusted.url.replace("http://", "https://"))
        assert run(FETCH) == 4
        text = capsys.readouterr().err
        assert "cannot trust the server (certificate verify failed)" in text
        assert "REQUESTS_CA_BUNDLE" in text
        assert trusted.log == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
        assert run(FETCH) == 0, "with the certificate of the mirror it works"


@pytest.mark.parametrize("dead", ["refused", "absent", "slow"])
def test_26_the_first_mirror_is_dead(
    dead: str, server: Server, cache: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as first:
        if dead == "slow":
            lose_patience(cache)
            first.fail("", stall_after(0, 3.0), always=True)
            first.objects |= server.objects
        root = "http://127.0.0.1:9" if dead == "refused" else first.url
        monkeypatch.setenv("WM2_GFS_ROOTS", f"{root},{server.url}")
        assert run(FETCH) == 0
    assert good(cache) == expected
