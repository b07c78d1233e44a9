"""The one door to the network: ranges, resumed downloads, retries, manners.

What goes wrong is told apart: absent (403, 404, 410), changed on the way, refused, or not reachable after all attempts.
A transfer that breaks off goes on where it stopped, by `Range` with `If-Range`, so that bytes of two versions of an
object never end up in one file. Credentials of services with a protocol of their own do not pass through here; a token
that a door is given goes to the host it is for and to no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

import wm2cli
from wm2cli.errors import RemoteError
from wm2cli.settings import Network, settings

USER_AGENT = f"wm2/{wm2cli.__version__} (+https://github.com/wm2cli/wm2)"
REQUESTS_PER_MINUTE: Mapping[str, int] = {"nomads.ncep.noaa.gov": 100}
"""Hosts that block who asks more often."""

_ABSENT = (403, 404, 410)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_BLOCK = 2**16
_MOST_REDIRECTS = 5
_PROGRESS_COUNTS = 2**20  # bytes after which a transfer that breaks off has its attempts anew
_READ_OVER = 2**25  # bytes: the most that is read and thrown away when a server ignores the range
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<error")


class AbsentError(RemoteError):
    """The object is not there, or not for everybody."""


class UnusableError(RemoteError):
    """The object is there, but not what it should be: shorter than its index says, or changed meanwhile."""


@dataclass(frozen=True)
class Reply:
    """A part of an object, or all of it.

    Args:
        data: The bytes.
        tag: Strong entity tag, or date of the last change; None when the server gives neither.
        size: Bytes of the whole object, when the server says so.
    """

    data: bytes
    tag: str | None
    size: int | None


class _Sink(Protocol):
    """Where bytes go; it knows how many it has."""

    held: int

    def write(self, data: bytes) -> None: ...

    def restart(self) -> None: ...


@dataclass
class _Memory:
    data: bytearray = field(default_factory=bytearray)
    held: int = 0

    def write(self, data: bytes) -> None:
        self.data += data
        self.held += len(data)

    def restart(self) -> None:
        self.data.clear()
        self.held = 0


class _File:
    """A file that grows, with a note beside it which object its bytes are from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = open(path, "ab")  # noqa: SIM115
        self.held = self.stream.tell()

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.held += len(data)

    def restart(self) -> None:
        self.stream.truncate(0)
        self.held = 0


class Meter:
    """Adds up bytes and tells people how many and how fast.

    Args:
        on_progress: See `wm2cli.sources.Progress`.
        what: What is being fetched.
        total: Bytes expected; 0 when unknown.
    """

    def __init__(self, on_progress: Callable[[str, int, int], None], what: str, total: int = 0) -> None:
        self.on_progress, self.what, self.total = on_progress, what, total
        self.done = self._fetched = 0
        self._began = self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int, fetched: bool = True) -> None:
        """So many bytes more; those that were there before do not count for the speed."""
        with self._lock:
            self.done += count
            self._fetched += count if fetched else 0
            now = time.monotonic()
            if now - self._told < 0.2:
                return
            self._told = now
            rate = self._fetched / max(now - self._began, 1e-3) / 1e6
            text = f"{self.what}, MB at {rate:.1f} MB/s"
            self.on_progress(text, round(self.done / 1e6), max(round(self.total / 1e6), round(self.done / 1e6), 1))


def ignore(count: int) -> None:
    """A count of bytes that nobody looks at."""


class _Session(requests.Session):
    """An answer that sends elsewhere gets no credentials for there: not those of this host, and none of ~/.netrc."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        if _origin(str(response.request.url)) != _origin(str(prepared_request.url)):
            prepared_request.headers.pop("Authorization", None)


class Door:
    """HTTP with manners. One may be used from several threads.

    Args:
        network: How patient; the user's settings when None.
        limits: Requests a minute, by host.
        tokens: Bearer tokens, by host (with its port, if it has one).
    """

    def __init__(
        self,
        network: Network | None = None,
        limits: Mapping[str, int] = REQUESTS_PER_MINUTE,
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.network = network or settings().network
        self.closing = threading.Event()
        self._limits = limits
        self._tokens = dict(tokens or {})
        self._recent: dict[str, deque[float]] = {}
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._session = _Session()
        self._session.auth = lambda request: request  # else requests takes credentials from ~/.netrc
        adapter = HTTPAdapter(pool_maxsize=max(10, self.network.parallel))
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def __enter__(self) -> Door:
        """Opens connections when they are needed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends transfers in other threads, and closes all connections."""
        self.closing.set()
        self._session.close()

    def get(
        self,
        url: str,
        start: int = 0,
        length: int | None = None,
        *,
        tag: str | None = None,
        on_bytes: Callable[[int], None] = ignore,
    ) -> Reply:
        """An object, or `length` bytes of it from `start` on (to its end when None).

        Args:
            tag: Of an earlier reply: bytes of another version of the object are refused.

        Raises:
            AbsentError: It is not there.
            UnusableError: It changed, or it ends too early.
            RemoteError: The remote refused, failed, or is not reachable.
        """
        sink = _Memory()
        found, size = self._pull(url, start, length, sink, tag, on_bytes, ranged=start > 0 or length is not None)
        return Reply(bytes(sink.data), found, size)

    def head(self, url: str) -> Mapping[str, str]:
        """What a service says of an object, without its bytes: headers, whatever their case.

        Redirects within the service are followed; where it keeps the bytes elsewhere, what it says itself is all.

        Raises:
            As `get`.
        """
        failed = 0
        while True:
            try:
                return self._head(url)
            except _AgainError as error:
                failed += 1
                self._rest(url, failed, error)

    def _head(self, url: str) -> Mapping[str, str]:
        said: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        for _ in range(_MOST_REDIRECTS):
            headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
            with self._answer(url, headers, "HEAD") as answer:
                said.update(answer.headers)
                if not answer.is_redirect:
                    self._check_status(url, answer)
                    return said
                target = urljoin(url, answer.headers["Location"])
            if _origin(target) != _origin(url):
                return said
            url = target
        raise RemoteError(f"{shown(url)}: redirects without end")

    def download(self, url: str, path: Path, size: int | None, *, on_bytes: Callable[[int, bool], None]) -> None:
        """A whole object into a file; what an earlier run left there is continued when it is of the same version.

        Args:
            path: Unfinished file; a note of what it is from lies beside it until it is complete.
            size: Bytes of the object; None when only the server knows.
            on_bytes: Gets counts of bytes, and whether they were fetched now.

        Raises:
            As `get`.
        """
        note = path.with_name(path.name + ".from")
        tag = None
        with contextlib.suppress(OSError, ValueError):
            account = json.loads(note.read_text())
            # The host may have changed meanwhile, as download nodes do: the tag and the size say what it is.
            tag = account["tag"] if account["size"] == size else None
        if tag is None:
            path.unlink(missing_ok=True)
        sink = _File(path)
        try:
            if size is not None and sink.held > size:
                sink.restart()
            on_bytes(sink.held, False)

            def remember(found: str | None) -> None:
                note.write_text(json.dumps({"tag": found, "size": size}))

            def pull(known: str | None) -> None:
                self._pull(url, 0, size, sink, known, lambda n: on_bytes(n, True), ranged=False, remember=remember)

            if size is None or sink.held < size:
                try:
                    pull(tag)
                except UnusableError:
                    if sink.held == 0:
                        raise
                    sink.restart()  # it changed: what is there belongs to another version
                    pull(None)
            sink.stream.flush()
            os.fsync(sink.stream.fileno())
        finally:
            sink.stream.close()
        note.unlink(missing_ok=True)

    def _pull(
        self,
        url: str,
        start: int,
        length: int | None,
        sink: _Sink,
        tag: str | None,
        on_bytes: Callable[[int], None],
        *,
        ranged: bool,
        remember: Callable[[str | None], None] = lambda found: None,
    ) -> tuple[str | None, int | None]:
        """Fills the sink, in as many attempts as it takes and the settings allow; its tag and the object's size."""
        failed, reached = 0, sink.held
        given = tag if ranged else None
        while True:
            try:
                tag, size = self._attempt(url, start, length, sink, tag, given, on_bytes, ranged, remember)
                return tag, size
            except _AgainError as error:
                if sink.held - reached >= _PROGRESS_COUNTS:
                    failed, reached = 0, sink.held
                failed += 1
                tag = error.tag or tag
                self._rest(url, failed, error)

    def _attempt(
        self,
        url: str,
        start: int,
        length: int | None,
        sink: _Sink,
        tag: str | None,
        given: str | None,
        on_bytes: Callable[[int], None],
        ranged: bool,
        remember: Callable[[str | None], None],
    ) -> tuple[str | None, int | None]:
        if sink.held and tag is None:
            sink.restart()  # without a tag nobody knows whether the rest would belong to what is there
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        asks_range = ranged or sink.held > 0
        here = start + sink.held
        if asks_range:
            end = "" if length is None else str(start + length - 1)
            headers["Range"] = f"bytes={here}-{end}"
            if tag is not None:
                headers["If-Range"] = tag
        with self._answer(url, headers) as answer:
            found = _tag(answer)
            self._check_status(url, answer)
            if answer.status_code == 206:
                first, size = _content_range(answer)
                if first != here:
                    raise _AgainError(f"sent bytes from {first} on, asked for those from {here} on")
                if tag is not None and found is not None and found != tag:
                    raise UnusableError(f"{shown(url)}: changed while it was being fetched")
                skip = 0
            else:
                size = _number(answer.headers.get("Content-Length"))
                skip = start
                if given is not None and found != given:
                    raise UnusableError(f"{shown(url)}: changed while it was being fetched")
                if ranged and start + (length or 0) > _READ_OVER:
                    raise UnusableError(f"{shown(url)}: the server ignores ranges")
                sink.restart()
            if not ranged and None not in (length, size) and size != length:
                raise _AgainError(f"has {size} bytes, {length} were announced", tag=found)
            remember(found)
            self._read(answer, sink, skip, length, found, on_bytes)
        if length is not None and sink.held < length:
            if size is not None and start + length > size:
                raise UnusableError(f"{shown(url)}: has {size} bytes, {start + length} were expected")
            raise _AgainError(f"ended after {sink.held} of {length} bytes", tag=found)
        return found, size

    def _read(
        self,
        answer: requests.Response,
        sink: _Sink,
        skip: int,
        length: int | None,
        tag: str | None,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Reads the body, but for `skip` bytes before what was asked for and all behind it."""
        first = answer.status_code == 200 or sink.held == 0
        while length is None or sink.held < length:
            if self.closing.is_set():
                raise _StoppedError
            try:
                # What has come is taken at once, so that nothing is lost of it when the rest does not come.
                block = answer.raw.read1(_BLOCK)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _AgainError(f"broke off after {sink.held} bytes ({reason_of(error)})", tag=tag) from error
            if not block:
                break
            if first and block[:256].lstrip().lower().startswith(_PAGES):
                hint = "a login page or a proxy may be in between; open the address in a browser"
                raise _AgainError("sent a web page instead of data", hint=hint)
            first = False
            part = block[skip:] if length is None else block[skip : skip + length - sink.held]
            skip = max(0, skip - len(block))
            sink.write(part)
            on_bytes(len(part))

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str], method: str = "GET") -> Iterator[requests.Response]:
        """The head of an answer; its body is read by who asked."""
        host = urlsplit(url).netloc
        self._wait_for_turn(host)
        patience = (self.network.connect_seconds, self.network.read_seconds)
        asked = dict(headers)
        if host in self._tokens:
            asked["Authorization"] = f"Bearer {self._tokens[host]}"
        try:
            answer = self._session.request(
                method, url, headers=asked, stream=True, timeout=patience, allow_redirects=method == "GET"
            )
        except requests.exceptions.SSLError as error:
            hint = "where a proxy inspects traffic, set REQUESTS_CA_BUNDLE to its certificate"
            if "certificate" in str(error).lower():
                raise RemoteError(f"{shown(url)}: cannot trust the server ({reason_of(error)})", hint=hint) from error
            raise _AgainError(f"the encrypted connection failed ({reason_of(error)})", hint=hint) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema,
                requests.exceptions.TooManyRedirects) as error:  # fmt: skip
            raise RemoteError(f"{shown(url)}: {error}", hint="check the roots in the settings") from error
        except requests.RequestException as error:
            # Where there is no network at all, more attempts only make people wait.
            most = 2 if isinstance(error, requests.ConnectionError) and _unreachable(error) else 1000
            raise _AgainError(
                f"cannot be reached ({reason_of(error)})", most=most, hint="check the network, or HTTPS_PROXY"
            ) from error
        try:
            yield answer
        finally:
            answer.close()

    def _check_status(self, url: str, answer: requests.Response) -> None:
        code = answer.status_code
        if code in (200, 206):
            return
        said = answer.headers.get("X-Error-Message")
        words = f"{code} {answer.reason or ''}".strip() + (f" ({said})" if said else "")
        if code in _ABSENT:
            raise AbsentError(f"{shown(url)}: {words}")
        if code == 416:
            raise UnusableError(f"{shown(url)}: shorter than expected ({words})")
        if code in _AGAIN:
            after = retry_after(answer.headers.get("Retry-After"))
            pause = after if after is not None else self.network.first_pause
            # All threads that ask this host slow down together.
            with self._lock:
                host = urlsplit(url).netloc
                self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + pause)
            raise _AgainError(f"answered {words}", after=after, hint="the service is busy: try again later")
        raise RemoteError(f"{shown(url)}: answered {words}")

    def _wait_for_turn(self, host: str) -> None:
        while not self.closing.is_set():
            with self._lock:
                now = time.monotonic()
                delay = self._not_before.get(host, 0.0) - now
                limit = self._limits.get(host)
                if limit is not None and delay <= 0:
                    recent = self._recent.setdefault(host, deque())
                    while recent and now - recent[0] >= 60.0:
                        recent.popleft()
                    delay = 60.0 - (now - recent[0]) if len(recent) >= limit else 0.0
                    if delay <= 0:
                        recent.append(now)
                if delay <= 0:
                    return
            self.closing.wait(delay)

    def _rest(self, url: str, failed: int, error: _AgainError) -> None:
        """The pause after a failure, or its end."""
        if failed >= min(self.network.attempts, error.most):
            times = "once" if failed == 1 else f"{failed} times"
            raise RemoteError(f"{shown(url)}: {error} (tried {times})", hint=error.hint) from error
        self.closing.wait(error.after if error.after is not None else self._pause(failed))
        if self.closing.is_set():
            raise _StoppedError from None

    def _pause(self, failed: int) -> float:
        most = min(self.network.longest_pause, self.network.first_pause * 2.0 ** (failed - 1))
        return most * random.uniform(0.5, 1.0)


class _StoppedError(Exception):
    """The program ends; nobody waits for this transfer any more."""


class _AgainError(Exception):
    """An attempt failed in a way that may not happen again."""

    def __init__(
        self,
        text: str,
        *,
        after: float | None = None,
        tag: str | None = None,
        most: int = 1000,
        hint: str | None = None,
    ) -> None:
        super().__init__(text)
        self.after, self.tag, self.most, self.hint = after, tag, most, hint


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url).scheme, urlsplit(url).netloc


def _tag(answer: requests.Response) -> str | None:
    """What `If-Range` may be asked with."""
    tag = answer.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified")


def _content_range(answer: requests.Response) -> tuple[int, int | None]:
    """First byte and size of the object, from `Content-Range: bytes 5-9/100`."""
    text = answer.headers.get("Content-Range", "")
    span, _, size = text.removeprefix("bytes").strip().partition("/")
    first = _number(span.partition("-")[0])
    if first is None:
        raise _AgainError(f"sent a part without saying which (Content-Range '{text}')")
    return first, _number(size)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def retry_after(text: str | None) -> float | None:
    """Seconds from `Retry-After`, which is a number or a date; at most an hour."""
    if text is None:
        return None
    if text.isdigit():
        return min(float(text), 3600.0)
    with contextlib.suppress(ValueError, TypeError):
        return min(max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0), 3600.0)
    return None


def _unreachable(error: Exception) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in ("resolve", "name or service", "refused", "unreachable", "getaddrinfo"))


def reason_of(error: BaseException) -> str:
    """The innermost reason of an error of `requests`, without memory addresses."""
    text = str(error)
    for sign, plain in (
        ("Read timed out", "no byte came in time"),
        ("Failed to resolve", "no such host, or no network"),
        ("Name or service not known", "no such host, or no network"),
        ("Temporary failure in name resolution", "no such host, or no network"),
        ("Connection refused", "connection refused"),
        ("unreachable", "network unreachable"),
        ("IncompleteRead", "fewer bytes than announced"),
        ("certificate verify failed", "certificate verify failed"),
        ("timed out", "timed out"),
    ):
        if sign in text:
            return plain
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
