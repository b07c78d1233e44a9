"""Local servers that stand in for the remote archives: real HTTP, real GRIB, and every fault on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import weather

from wm2cli.schema import LEVELS_25

TIME = np.datetime64("2024-01-01T00", "s")

Action = Callable[["Handler", bytes | None], bool]
"""Answers a request in place of the server (True), or lets it answer (False)."""


@dataclass
class Seen:
    """A request as it arrived, and how it was answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int = 0


@dataclass
class Fault:
    """What happens to the first, second, ... request whose path matches; None is nothing."""

    pattern: str
    actions: Sequence[Action | None]
    always: bool = False
    count: int = 0


class Server:
    """A store of objects with the manners of S3: one range a request, tags, XML errors."""

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.absent = 404
        self.tags: dict[str, str] = {}
        self.log: list[Seen] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.delay = 0.0
        made = type("Bound", (Handler,), {"owner": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), made)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *about: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def fail(self, pattern: str, *actions: Action | None, always: bool = False) -> None:
        """The k-th request whose path matches meets the k-th action; with `always` all meet the last one."""
        self.faults.append(Fault(pattern, actions, always))

    def seen(self, pattern: str = "", method: str = "GET") -> list[Seen]:
        return [item for item in self.log if item.method == method and re.search(pattern, item.path)]

    def action(self, path: str) -> Action | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.pattern, path):
                    fault.count += 1
                    if fault.count <= len(fault.actions):
                        return fault.actions[fault.count - 1]
                    if fault.always:
                        return fault.actions[-1]
        return None

    def find(self, path: str) -> bytes | None:
        return self.objects.get(path)

    def tag(self, path: str, body: bytes) -> str:
        return self.tags.get(path) or f'"{hashlib.md5(body).hexdigest()}"'  # noqa: S324

    def special(self, handler: Handler) -> bool:
        """Answers what is no object; for services."""
        return False


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    owner: Server
    ignore_range = False
    shift = 0
    length_off = 0

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.handle_one()

    def do_HEAD(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def do_DELETE(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        self.ignore_range, self.shift, self.length_off = False, 0, 0
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.key = path
        if self.owner.delay:
            time.sleep(self.owner.delay)
        length = int(self.headers.get("Content-Length") or 0)
        self.payload = self.rfile.read(length) if length else b""
        self.seen = Seen(self.command, path, dict(self.headers.items()))
        with self.owner.lock:
            self.owner.log.append(self.seen)
        try:
            body = self.owner.find(path)
            action = self.owner.action(path)
            if action is not None and action(self, body):
                return
            if self.owner.special(self):
                return
            if body is None:
                code = "NoSuchKey" if self.owner.absent == 404 else "AccessDenied"
                self.answer(self.owner.absent, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode(),
                            {"Content-Type": "application/xml"})  # fmt: skip
                return
            self.give(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def give(self, body: bytes) -> None:
        """An object or a range of it."""
        tag = self.owner.tag(self.key, body)
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream",
                   "Last-Modified": "Mon, 01 Jan 2024 04:00:00 GMT"}  # fmt: skip
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        fits = self.headers.get("If-Range") in (None, tag)
        if wanted is None or self.ignore_range or not fits:
            self.answer(200, body, headers)
            return
        first = int(wanted[1])
        last = min(int(wanted[2]) if wanted[2] else len(body) - 1, len(body) - 1)
        if first >= len(body):
            text = f"<?xml version='1.0'?><Error><Code>InvalidRange</Code><ActualObjectSize>{len(body)}"
            self.answer(416, text.encode(), {"Content-Range": f"bytes */{len(body)}"})
            return
        headers["Content-Range"] = f"bytes {first + self.shift}-{last + self.shift}/{len(body)}"
        self.answer(206, body[first : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + self.length_off))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)
        if self.length_off:
            self.close_connection = True

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body)


def status(code: int, body: bytes = b"", **headers: str) -> Action:
    """Answers with a status."""

    def act(handler: Handler, found: bytes | None) -> bool:
        handler.answer(code, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return act


def slow_down() -> Action:
    return status(503, b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>")


def page(code: int = 200) -> Action:
    return status(code, b"<!DOCTYPE html><html><body>Please log in</body></html>", Content_Type="text/html")


def _in_place_of_the_body(send: Callable[[Handler, bytes], None]) -> Action:
    def act(handler: Handler, found: bytes | None) -> bool:
        handler.send_body = partial(send, handler)  # type: ignore[method-assign]
        try:
            handler.give(found or b"")
        finally:
            del handler.send_body
        return True

    return act


def close_after(count: int) -> Action:
    """The right length in the header, then so many bytes, then nothing."""
    return stall_after(count, 0.0)


def stall_after(count: int, seconds: float) -> Action:
    """So many bytes, then silence."""

    def send(handler: Handler, body: bytes) -> None:
        handler.wfile.write(body[:count])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True

    return _in_place_of_the_body(send)


def drip(pieces: int, pause: float) -> Action:
    """The whole body, a little at a time."""

    def send(handler: Handler, body: bytes) -> None:
        step = max(1, len(body) // pieces)
        for here in range(0, len(body), step):
            handler.wfile.write(body[here : here + step])
            handler.wfile.flush()
            time.sleep(pause)

    return _in_place_of_the_body(send)


def wrong_length(off: int) -> Action:
    def act(handler: Handler, found: bytes | None) -> bool:
        handler.length_off = off
        return False

    return act


def ignore_range() -> Action:
    def act(handler: Handler, found: bytes | None) -> bool:
        handler.ignore_range = True
        return False

    return act


def shift_range(off: int) -> Action:
    def act(handler: Handler, found: bytes | None) -> bool:
        handler.shift = off
        return False

    return act


def redirect(url: str) -> Action:
    return status(302, b"", Location=url)


# GFS


@cache
def gfs_message(name: str, level: float | None, time: np.datetime64 = TIME, **how: Any) -> bytes:
    return weather.encode(name, level, style="gfs", time=time, **how)


@dataclass(frozen=True)
class Line:
    """A message and what its index calls it."""

    words: str
    data: bytes
    forecast: str = "anl"


GFS_NAMES = {"z": "HGT", "t": "TMP", "u": "UGRD", "v": "VGRD", "q": "SPFH", "r": "RH"}
GFS_GROUND = {
    "msl": "PRMSL:mean sea level", "t2m": "TMP:2 m above ground", "d2m": "DPT:2 m above ground",
    "u10": "UGRD:10 m above ground", "v10": "VGRD:10 m above ground", "u100": "UGRD:100 m above ground",
    "v100": "VGRD:100 m above ground", "tcc": "TCDC:entire atmosphere",
}  # fmt: skip


def gfs_lines(
    levels: Sequence[float] = LEVELS_25, time: np.datetime64 = TIME, without: Iterable[str] = (), **how: Any
) -> list[Line]:
    """A file as NCEP orders it, with messages between that look alike and are none of ours."""
    absent = set(without)
    lines = [Line("PRMSL:mean sea level", gfs_message("msl", None, time, **how))]
    lines.append(Line("TMP:2 mb", gfs_message("t", 2, time, **how)))
    for level in levels:
        for name in ("z", "t", "r", "q", "u", "v"):
            if f"{name}{level:g}" in absent:
                continue
            lines.append(Line(f"{GFS_NAMES[name]}:{level:g} mb", gfs_message(name, level, time, **how)))
            if name == "q":
                lines.append(Line(f"VVEL:{level:g} mb", gfs_message("t", 1, time, **how)))
        lines.append(Line(f"TCDC:{level:g} mb", gfs_message("tcc", None, time, **how)))
    for name, words in GFS_GROUND.items():
        if name != "msl" and name not in absent:
            lines.append(Line(words, gfs_message(name, None, time, **how)))
    lines.append(Line("TCDC:entire atmosphere", gfs_message("tcc", None, time, bits=8), "0-0 day ave fcst"))
    lines.append(Line("TCDC:convective cloud layer", gfs_message("tcc", None, time, **how)))
    return lines


def gfs_objects(lines: Sequence[Line], path: str, time: np.datetime64 = TIME, ending: str = "\n") -> dict[str, bytes]:
    """A file and its index."""
    stamp = str(time.astype("datetime64[h]")).replace("-", "").replace("T", "")
    rows, offset = [], 0
    for number, line in enumerate(lines, 1):
        rows.append(f"{number}:{offset}:d={stamp}:{line.words}:{line.forecast}:")
        offset += len(line.data)
    return {path: b"".join(line.data for line in lines), f"{path}.idx": (ending.join(rows) + ending).encode()}


def gfs_path(time: np.datetime64 = TIME, grid: str = "5p00", layout: str = "v16") -> str:
    day, hour = str(time.astype("datetime64[D]")).replace("-", ""), f"{time.astype(object).hour:02d}"
    return {
        "v16": f"gfs.{day}/{hour}/atmos/gfs.t{hour}z.pgrb2.{grid}.f000",
        "old": f"gfs.{day}/{hour}/gfs.t{hour}z.pgrb2.{grid}.f000",
        "v17": f"gfs.{day}/{hour}/products/atmos/grib2/{grid}/gfs.t{hour}z.pres_a.{grid}.f000.grib2",
    }[layout]


# IFS


IFS_LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
IFS_NAMES = {"z": "gh", "t2m": "2t", "d2m": "2d", "u10": "10u", "v10": "10v", "u100": "100u", "v100": "100v"}


@cache
def ifs_message(name: str, level: float | None, time: np.datetime64 = TIME, **how: Any) -> bytes:
    how = {"from_lon": 180.0, "packing": "grid_ccsds", "bits": 16, **how}
    return weather.encode(name, level, style="ifs", time=time, **how)


def ifs_path(time: np.datetime64 = TIME, grid: str = "5p00", middle: str = "ifs/", stream: str = "oper") -> str:
    day, hour = str(time.astype("datetime64[D]")).replace("-", ""), f"{time.astype(object).hour:02d}"
    return f"{day}/{hour}z/{middle}{grid}/{stream}/{day}{hour}0000-0h-{stream}-fc"


def ifs_objects(
    path: str,
    time: np.datetime64 = TIME,
    levels: Sequence[float] = IFS_LEVELS,
    without: Iterable[str] = (),
    **how: Any,
) -> dict[str, bytes]:
    """A file and its index, in no particular order, with a soil level and relative humidity between."""
    absent = set(without)
    what: list[tuple[str, float | None]] = [(name, level) for level in levels for name in ("r", *weather.UPPER)]
    what += [(name, None) for name in weather.GROUND]
    rows, body = [], b""
    for name, level in what:
        label = name if level is None else f"{name}{level:g}"
        if label in absent:
            continue
        data = ifs_message(name, level, time, **how)
        kind = {"levtype": "sfc"} if level is None else {"levelist": f"{level:g}", "levtype": "pl"}
        row = {"domain": "g", "date": str(time.astype("datetime64[D]")).replace("-", ""),
               "time": f"{time.astype(object).hour:02d}00", "expver": "0001", "class": "od", "type": "fc",
               "stream": "oper", "step": "0", **kind, "param": IFS_NAMES.get(name, name), "_offset": len(body),
               "_length": len(data)}  # fmt: skip
        rows.append(json.dumps(row))
        body += data
    return {f"{path}.grib2": body, f"{path}.index": ("\n".join(rows) + "\n").encode()}
