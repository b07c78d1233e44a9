"""`wm2 weights get`: published weights from a stand-in of the hub into the cache, and every way that can go wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import xarray as xr
from standin_hub import COMMIT, Hub
from standins import Action, Server, close_after, gfs_lines, gfs_objects, gfs_path, ignore_range, page, status

from wm2cli import checkpoint, hub, sources, transfer, weights
from wm2cli.cli import run
from wm2cli.models.presets import PRESETS, Preset
from wm2cli.models.stormer import SCHEMA
from wm2cli.schema import LEVELS_13
from wm2cli.sources import Request, open_source

NAME, FILE = "stormer-11.25-p2", "stormer_11.25_patch_size_2.ckpt"
GET = ["weights", "get", NAME]


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint as published, of a network whose forecasts stay possible."""
    model = lightning.network("16x32", 2, width=16, depth=1, heads=2)
    with torch.no_grad():
        model.net.head.linear.weight.mul_(1e-3)
        model.net.head.linear.bias.mul_(1e-3)
    return lightning.write(tmp_path_factory.mktemp("hub") / FILE, model.state_dict()).read_bytes()


@pytest.fixture
def server(body: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub with it, which wm2 knows by name and sha256."""
    model = lightning.network("16x32", 2, width=16, depth=1, heads=2)
    known = hub.Published(NAME, "owner/Toy", FILE, len(body), hashlib.sha256(body).hexdigest(), len(body) // 3, "MIT",
                          "real weather", ("1979-01-01", "2018-12-31"))  # fmt: skip
    monkeypatch.setitem(hub.PUBLISHED, NAME, known)  # type: ignore[arg-type]
    monkeypatch.setitem(PRESETS, NAME, Preset("toy", 11.25, "cells", model.config, "stormer"))
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "WM2_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    with Hub("owner/Toy", {FILE: body}) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def know(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setitem(hub.PUBLISHED, NAME, replace(hub.PUBLISHED[NAME], **changes))  # type: ignore[arg-type]


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "weights").iterdir()) if (cache / "weights").exists() else []


def test_weights_come_by_name_and_are_used_by_name(
    server: Hub, cache: Path, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = ["forecast", "--init", "2024-01-01T00", "--hours", "12", "--source", "idealized", "--weights", NAME]
    assert run([*forecast, "--out", "a.nc"]) == 6
    err = capsys.readouterr().err
    assert f"error: the weights '{NAME}' are not on this machine yet" in err
    assert f"hint: `wm2 weights get {NAME}` fetches them" in err
    assert run([*GET, "--plan"]) == 0
    streams = capsys.readouterr()
    assert (
        f"{len(body) / 1e3:.3g} kB from https://huggingface.co/owner/Toy/blob/main/{FILE}, licence MIT" in streams.err
    )
    assert server.log == []
    assert run(GET) == 0
    streams = capsys.readouterr()
    path = cache / "weights" / f"{NAME}.safetensors"
    assert streams.out == f"{path}\n"
    assert streams.err.startswith(f"note: {NAME}: {len(body) / 1e3:.3g} kB from")
    assert left(cache) == [path.name]
    header, _ = checkpoint.read_header(path)
    assert (header.name, header.licence, header.trained) == (NAME, "MIT", True)
    assert header.training["data"] == "real weather"
    origin = {"file": FILE, "sha256": hashlib.sha256(body).hexdigest(),
              "url": f"{server.url}/owner/Toy/resolve/{COMMIT}/{FILE}"}  # fmt: skip
    assert header.training["origin"] == origin
    assert [(seen.method, seen.path.split("/")[3]) for seen in server.log] == [("HEAD", "main"), ("GET", COMMIT)]
    assert run(GET) == 0  # and a second time, nothing is asked
    assert len(server.log) == 2
    assert "is here already, and whole" in capsys.readouterr().err
    assert run([*forecast, "--out", "a.nc"]) == 0
    with xr.open_dataset("a.nc") as made:
        assert made.attrs["weights_name"] == NAME
        assert made.attrs["weights_training_data"] == "real weather"
        assert "warning" not in made.attrs
    assert run(["weights", "verify", NAME]) == 0
    assert run(["weights", "info", NAME, "--json"]) == 0


def test_the_list(server: Hub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["weights"]}
    assert (rows["wm2-mini"]["where"], rows["wm2-mini"]["licence"]) == ("bundled", "MIT")
    assert "imulated" in rows["wm2-mini"]["data"]
    assert (rows[NAME]["where"], rows[NAME]["path"]) == ("to get", None)
    assert rows["stormer-1.40625-p4"]["bytes"] == 5_570_407_547
    assert "ERA5 1979-2018" in rows["stormer-1.40625-p2"]["data"]
    assert run(GET) == 0
    (cache / "weights" / "broken.safetensors").write_bytes(b"no weights")
    capsys.readouterr()
    assert run(["weights", "list"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith((NAME, "broken"))] == ["damaged", "cached"]
    assert weights.resolve(NAME) == cache / "weights" / f"{NAME}.safetensors"
    assert run(["weights", "verify", "broken"]) == 6
    assert server.seen()
    assert all(seen.headers["User-Agent"].startswith("wm2/") for seen in server.log)


def test_a_transfer_that_breaks_off_goes_on(server: Hub, cache: Path, body: bytes) -> None:
    """Within a run, and in the next one; each time through the hub, whose addresses of the bytes expire."""
    server.cdn.fail("objects", close_after(100_000), status(503), status(503), status(503))
    assert run(GET) == 4
    assert left(cache) == [f".{FILE}.part", f".{FILE}.part.from"]
    assert (cache / "weights" / f".{FILE}.part").stat().st_size == 100_000
    server.cdn.log.clear()
    server.cdn.fail("objects", close_after(50_000))
    assert run(GET) == 0
    assert [seen.headers.get("Range") for seen in server.cdn.log] == [
        f"bytes=100000-{len(body) - 1}", f"bytes=150000-{len(body) - 1}"]  # fmt: skip
    assert len(server.seen("resolve")) == 4 + 2
    assert left(cache) == [f"{NAME}.safetensors"]


@pytest.mark.parametrize(
    "action", [page(), ignore_range(), status(429, Retry_After="0")], ids=["page", "range", "busy"]
)
def test_manners_of_other_servers(action: Action, server: Hub) -> None:
    server.cdn.fail("objects", close_after(100_000), action)
    assert run(GET) == 0


def test_a_damaged_file_is_removed(server: Hub, cache: Path, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(iter(server.cdn.objects))
    server.cdn.objects[key] = body[:5000] + bytes([body[5000] ^ 1]) + body[5001:]
    assert run(GET) == 6
    err = capsys.readouterr().err
    assert "is damaged: its sha256 is" in err
    assert f"expected {hashlib.sha256(body).hexdigest()}" in err
    assert left(cache) == []
    server.cdn.objects[key] = body
    assert run(GET) == 0


def test_another_file_is_refused_before_it_is_fetched(
    server: Hub, cache: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, sha256="0" * 64, bytes=len(body) + 1)
    assert run(GET) == 6
    err = capsys.readouterr().err
    assert "the hub has another file as owner/Toy/" in err
    assert f"it has {len(body)} bytes, expected {len(body) + 1}" in err
    assert f"its sha256 is {hashlib.sha256(body).hexdigest()}, expected 000" in err
    assert server.cdn.log == []
    server.announces = False  # a mirror that says nothing: then the bytes speak
    assert run(GET) == 4
    assert "were announced" in capsys.readouterr().err
    know(monkeypatch, bytes=len(body))
    assert run(GET) == 6
    assert "is damaged" in capsys.readouterr().err
    assert left(cache) == []


def test_what_the_hub_announces_counts_where_nothing_is_known(
    server: Hub, body: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    know(monkeypatch, sha256=None)
    server.announces = False
    assert run(GET) == 4
    assert "is not known here, and the hub announces none" in capsys.readouterr().err
    server.announces = True
    assert run(GET) == 0
    digest = hashlib.sha256(body).hexdigest()
    assert f"was not known beforehand: it is {digest}, as the hub announced" in capsys.readouterr().err
    header, _ = checkpoint.read_header(cache / "weights" / f"{NAME}.safetensors")
    assert "announced" in header.training["origin"]["checked"]
    (cache / "weights" / f"{NAME}.safetensors").unlink()
    server.cdn.objects[f"objects/{digest}"] = body[::-1]
    assert run(GET) == 6


def test_another_network_under_the_name_is_refused(
    server: Hub, cache: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what was fetched stays, so that it need not be fetched again when wm2 can read it."""
    other = replace(PRESETS[NAME], config=replace(PRESETS[NAME].config, depth=2))  # type: ignore[type-var]
    monkeypatch.setitem(PRESETS, NAME, other)
    assert run(GET) == 6
    assert f"it is no such network as '{NAME}' is" in capsys.readouterr().err
    assert left(cache) == [f".{FILE}.whole.part"]
    fetched = len(server.cdn.log)
    monkeypatch.setitem(PRESETS, NAME, replace(other, config=replace(other.config, depth=1)))  # type: ignore[type-var]
    assert run(GET) == 0
    assert len(server.cdn.log) == fetched


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda hub: setattr(hub, "private", "mine"), "401 Unauthorized (Invalid username or password.)"),
        (lambda hub: hub.fail("resolve", status(403, X_Error_Message="Access is restricted"), always=True),
         "403 Forbidden (Access is restricted)"),
        (lambda hub: hub.files.clear(), "404 Not Found (Entry not found)"),
        (lambda hub: hub.fail("resolve", status(500), always=True), "500 Internal Server Error (tried 4 times)"),
        (lambda hub: hub.cdn.objects.clear(), "404 Not Found"),
    ],
    ids=["401", "403", "404", "500", "no bytes"],
)  # fmt: skip
def test_a_hub_that_refuses(
    change: Callable[[Hub], object], text: str, server: Hub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(server)
    assert run(GET) == 4
    err = capsys.readouterr().err
    assert text in err
    assert "HF_ENDPOINT names a mirror, HF_TOKEN logs in" in err
    assert "secret" not in err
    assert not [name for name in left(cache) if not name.startswith(".")]


def test_the_token_goes_to_the_hub_alone(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HF_TOKEN", "mine")
    server.private = "mine"
    know(monkeypatch, repository="Owner/toy")  # and through a redirect within the hub
    assert run(GET) == 0
    assert {seen.headers.get("Authorization") for seen in server.log} == {"Bearer mine"}
    assert {seen.status for seen in server.log} == {307, 302}
    assert [seen.headers.get("Authorization") for seen in server.cdn.log] == [None]


def test_no_hub_no_network_no_room(
    server: Hub, cache: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*GET, "--offline"]) == 4
    assert f"--offline: the weights '{NAME}' are not here" in capsys.readouterr().err
    assert run(["weights", "get", "stormer-1.40625-p3"]) == 2
    assert "did you mean 'stormer-1.40625-p" in capsys.readouterr().err
    assert run(["weights", "info", "stormer-1.40625-p3"]) == 6
    assert "did you mean 'stormer-1.40625-p" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(GET) == 4
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    real = hub.shutil.disk_usage
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: real(path)._replace(free=len(body)))
    assert run(GET) == 7
    assert "for a while" in capsys.readouterr().err
    assert server.cdn.log == []
    monkeypatch.setattr(hub.shutil, "disk_usage", real)

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer._File, "write", full)
        assert run(GET) == 7
    assert "No space left on device" in capsys.readouterr().err
    assert [name for name in left(cache) if not name.endswith(".from")] == []
    assert run(GET) == 0


def test_damage_in_the_cache_is_mended(server: Hub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GET) == 0
    path = cache / "weights" / f"{NAME}.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-2000] + bytes([good[-2000] ^ 1]) + good[-1999:])
    assert run(["weights", "verify", NAME]) == 6
    assert run([*GET, "--offline"]) == 4
    assert f"--offline: the weights '{NAME}' are damaged" in capsys.readouterr().err
    assert path.exists()
    capsys.readouterr()
    assert run(GET) == 0
    assert "do not match the digest in its header: fetched again" in capsys.readouterr().err
    assert path.read_bytes() == good
    (path.parent.parent / NAME).mkdir()  # a folder of that name is in nobody's way
    assert weights.resolve(NAME) == path


def test_two_runs_share_one_download(server: Hub, cache: Path) -> None:
    server.cdn.delay = 0.3
    done: list[Path] = []
    threads = [threading.Thread(target=lambda: done.append(weights.get(NAME).path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [cache / "weights" / f"{NAME}.safetensors"] * 2
    assert len(server.cdn.log) == 1


def test_the_real_client_finds_the_stand_in_real(server: Hub, body: bytes, tmp_path: Path) -> None:
    """So that the stand-in does not drift to suit us."""
    client = pytest.importorskip("huggingface_hub")
    path = client.hf_hub_download("owner/Toy", FILE, endpoint=server.url, cache_dir=tmp_path / "hf", token=False)
    assert Path(path).read_bytes() == body
    assert COMMIT in str(path)
    found = client.get_hf_file_metadata(client.hf_hub_url("owner/Toy", FILE, endpoint=server.url), token=False)
    assert (found.commit_hash, found.etag, found.size) == (COMMIT, hashlib.sha256(body).hexdigest(), len(body))
    with pytest.raises(client.errors.EntryNotFoundError):
        client.get_hf_file_metadata(client.hf_hub_url("owner/Toy", "none", endpoint=server.url), token=False)
    with pytest.raises(client.errors.RepositoryNotFoundError):
        client.get_hf_file_metadata(client.hf_hub_url("no/such", FILE, endpoint=server.url), token=False)


# From there to a forecast


@pytest.mark.parametrize("source", ["gfs", "ifs", "era5", "arco"])
def test_every_source_has_all_that_the_published_networks_read(source: str) -> None:
    pieces = open_source(source).plan(Request((np.datetime64("2024-06-01T00", "s"),), schema=SCHEMA.dynamic))
    parts = [part for piece in pieces for part in piece.parts]
    assert len(parts) == len(set(parts)) == 69


def test_the_latest_analysis_needs_nothing_else(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small Stormer for the published one, GFS at 5 degrees for that at 0.25; the plan says it all offline."""
    init = np.datetime64("2024-01-01T00", "s")
    monkeypatch.setattr(sources, "now", lambda: init + np.timedelta64(5, "h"))
    assert run(GET) == 0
    common = ["--weights", NAME, "--hours", "24", "--step", "24", "--source", "gfs", "--option", "grid=5"]
    capsys.readouterr()
    assert run(["forecast", "--init", "2024-01-01T00", *common, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(row["source"], row["fields"], row["cached"]) for row in plan["reads"]] == [("gfs", 69, False)]
    assert plan["runs"]["grid"].startswith("16x32, latitude 84.375 to -84.375")
    assert run(["forecast", "--init", "2024-01-01T00", *common, "--plan"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "69 fields" in text
    assert "brought to 16x32" in text
    with Server(gfs_objects(gfs_lines(LEVELS_13), gfs_path())) as archive:
        monkeypatch.setenv("WM2_GFS_ROOTS", archive.url)
        assert run(["forecast", "--init", "latest", *common, "--out", "a.nc"]) == 0, capsys.readouterr().err
    with xr.open_dataset("a.nc") as made:
        assert made.sizes["level"] == 13
        assert {"z", "t", "u", "v", "q", "t2m", "u10", "v10", "msl"} <= set(made.data_vars)
        assert "regridded conservatively" in made.attrs["initial_conditions_processing"]
        assert np.isfinite(made["z"]).all()


def test_the_known_files_are_of_the_presets_of_their_names() -> None:
    for name in ("stormer-1.40625-p2", "stormer-1.40625-p4"):
        known, patch = hub.PUBLISHED[name], int(name[-1])
        assert PRESETS[name].config.patch == patch
        assert known.file == f"stormer_1.40625_patch_size_{patch}.ckpt"
        parameters = {2: 468_751_636, 4: 464_156_752}[patch]
        # Weights and two moments of four bytes, and what is said about them.
        assert 0 < known.bytes - 12 * parameters < 1e6
        assert 0 < known.kept_bytes - 4 * parameters < 1e6
        assert known.sha256 is None or len(known.sha256) == 64
