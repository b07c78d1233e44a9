"""The door to the network by itself: ranges, resumed downloads, limits, what is told apart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins import Handler, Server, close_after, status

from wm2cli.errors import ConfigError, RemoteError
from wm2cli.settings import Network, settings
from wm2cli.transfer import AbsentError, Door, Meter, UnusableError, retry_after, shown

QUICK = Network(attempts=4, first_pause=0.01, longest_pause=0.05, read_seconds=10.0, connect_seconds=10.0)
BODY = bytes(range(256)) * 2000


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"a": BODY}) as made:
        yield made


def test_a_range_and_the_whole(server: Server) -> None:
    with Door(QUICK) as door:
        part = door.get(f"{server.url}/a", 300, 50)
        assert part.data == BODY[300:350]
        assert part.size == len(BODY)
        assert part.tag
        assert part.tag.startswith('"')
        assert door.get(f"{server.url}/a").data == BODY
        assert door.get(f"{server.url}/a", len(BODY) - 5).data == BODY[-5:]
    first, whole, rest = server.seen()
    assert first.headers["Range"] == "bytes=300-349"
    assert "Range" not in whole.headers
    assert rest.headers["Range"] == f"bytes={len(BODY) - 5}-"
    assert first.headers["User-Agent"].startswith("wm2/")
    assert first.headers["Accept-Encoding"] == "identity"


def test_a_whole_object_that_breaks_off_is_continued(server: Server) -> None:
    server.fail("a", close_after(1000), close_after(2000))
    with Door(QUICK) as door:
        assert door.get(f"{server.url}/a").data == BODY
    assert [item.headers.get("Range") for item in server.seen()] == [None, "bytes=1000-", "bytes=3000-"]


def test_without_a_tag_it_starts_again(server: Server) -> None:
    def bare(handler: Handler, body: bytes | None) -> bool:
        handler.answer(200, BODY, {})
        return True

    def bare_half(handler: Handler, body: bytes | None) -> bool:
        handler.length_off = 500
        handler.answer(200, BODY[:-500], {})
        return True

    server.fail("a", bare_half, bare)
    with Door(QUICK) as door:
        assert door.get(f"{server.url}/a").data == BODY
    assert [item.headers.get("Range") for item in server.seen()] == [None, None]


def test_another_version_is_refused(server: Server) -> None:
    with Door(QUICK) as door:
        tag = door.get(f"{server.url}/a", 0, 10).tag
        server.objects["a"] = BODY[::-1]
        with pytest.raises(UnusableError, match="changed"):
            door.get(f"{server.url}/a", 10, 10, tag=tag)


@pytest.mark.parametrize("code", [403, 404, 410])
def test_absent(code: int, server: Server) -> None:
    server.absent = code
    with Door(QUICK) as door, pytest.raises(AbsentError, match=str(code)):
        door.get(f"{server.url}/b")
    assert len(server.log) == 1


def test_downloads_go_on_where_another_run_stopped(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "part"
    server.fail("a", close_after(100000), status(500), status(500), status(500))
    with Door(QUICK) as door, pytest.raises(RemoteError):
        door.download(f"{server.url}/a", path, len(BODY), on_bytes=lambda count, fetched: None)
    assert path.read_bytes() == BODY[:100000]
    assert json.loads((tmp_path / "part.from").read_text())["size"] == len(BODY)
    server.log.clear()
    counts: list[tuple[int, bool]] = []
    with Door(QUICK) as door:
        door.download(
            f"{server.url}/a", path, len(BODY), on_bytes=lambda count, fetched: counts.append((count, fetched))
        )
    assert path.read_bytes() == BODY
    assert [item.headers["Range"] for item in server.seen()] == [f"bytes=100000-{len(BODY) - 1}"]
    assert counts[0] == (100000, False)
    assert sum(count for count, _ in counts) == len(BODY)
    assert not (tmp_path / "part.from").exists()


def test_downloads_start_again_when_the_object_is_another(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"x" * 5000)
    (tmp_path / "part.from").write_text(json.dumps({"tag": '"old"', "size": len(BODY)}))
    with Door(QUICK) as door:
        door.download(f"{server.url}/a", path, len(BODY), on_bytes=lambda count, fetched: None)
    assert path.read_bytes() == BODY
    assert server.seen()[0].headers["If-Range"] == '"old"'


def test_what_nobody_knows_the_origin_of_is_not_continued(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"x" * 5000)
    with Door(QUICK) as door:
        door.download(f"{server.url}/a", path, len(BODY), on_bytes=lambda count, fetched: None)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("off", [-7, 7])
def test_another_size_than_announced(off: int, server: Server, tmp_path: Path) -> None:
    with Door(QUICK) as door, pytest.raises(RemoteError, match="were announced"):
        door.download(f"{server.url}/a", tmp_path / "part", len(BODY) + off, on_bytes=lambda count, fetched: None)
    assert len(server.log) == QUICK.attempts


def test_a_server_without_ranges_is_not_read_over_and_over(server: Server) -> None:
    def plain(handler: Handler, body: bytes | None) -> bool:
        handler.ignore_range = True
        return False

    server.fail("a", plain, always=True)
    with Door(QUICK) as door:
        assert door.get(f"{server.url}/a", 300, 50).data == BODY[300:350]
        with pytest.raises(UnusableError, match="ignores ranges"):
            door.get(f"{server.url}/a", 10**9, 50)


def test_limits_are_kept(server: Server) -> None:
    host = server.url.removeprefix("http://")
    door = Door(QUICK, limits={host: 3})
    thread = threading.Thread(target=lambda: [door.get(f"{server.url}/a", 0, 1) for _ in range(3)])
    thread.start()
    thread.join()
    late = threading.Thread(target=lambda: door._wait_for_turn(host), daemon=True)
    late.start()
    late.join(0.3)
    assert late.is_alive(), "the fourth within a minute waits"
    door.__exit__()
    late.join(2)
    assert not late.is_alive()


def test_a_busy_host_is_left_alone_by_all(server: Server) -> None:
    server.fail("a", status(503, Retry_After="1"))
    began = time.monotonic()
    with Door(QUICK) as door:
        threads = [threading.Thread(target=door.get, args=(f"{server.url}/a", 0, 1)) for _ in range(3)]
        threads[0].start()
        time.sleep(0.2)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.monotonic() - began >= 1.0


def test_secrets_in_addresses_are_not_shown() -> None:
    assert shown("https://me:secret@example.org/a/b?token=secret") == "https://example.org/a/b"
    with Door(QUICK) as door, pytest.raises(RemoteError) as error:
        door.get("http://me:secret@127.0.0.1:9/a?sig=secret")
    assert "secret" not in str(error.value)


def test_credentials_of_netrc_stay_at_home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Door(QUICK) as door:
        door.get(f"{server.url}/a", 0, 1)
    assert "Authorization" not in server.log[0].headers


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("7", 7.0), ("nonsense", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
                          ("99999", 3600.0)],
)  # fmt: skip
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after(text) == seconds


def test_progress_tells_bytes_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    ticks = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    meter = Meter(lambda *what: told.append(what), "fetching a", 30_000_000)
    meter.add(5_000_000, fetched=False)
    meter.add(10_000_000)
    assert told[-1] == ("fetching a, MB at 5.0 MB/s", 15, 30)


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("WM2_CONFIG", str(path))
    monkeypatch.delenv("WM2_GFS_ROOTS", raising=False)
    path.write_text('[roots]\ngfs = ["https://a.example/"]\n[network]\nattempts = 9\n')
    assert settings().roots.gfs == ("https://a.example/",)
    assert settings().network.attempts == 9
    monkeypatch.setenv("WM2_GFS_ROOTS", "https://b.example/, https://c.example/")
    assert settings().roots.gfs == ("https://b.example/", "https://c.example/")
    path.write_text("[network]\natempts = 9\n")
    with pytest.raises(ConfigError) as error:
        settings()
    assert "did you mean 'attempts'" in str(error.value)
    path.write_text("[network]\nattempts = 0\n")
    with pytest.raises(ConfigError, match="cannot be used"):
        settings()
    path.write_text("[network\n")
    with pytest.raises(ConfigError, match="cannot read"):
        settings()
