"""Checkpoints: what comes back, and everything that must not pass for one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import network, state, static

from wm2cli.checkpoint import FORMAT, Header, load, read_header, save, verify
from wm2cli.errors import CheckpointError, ConfigError, ResourceError
from wm2cli.state import Normalizer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = network()
    header = Header("weathermesh2", "test", model.config, model.normalizer, static={"orog": "made up"})
    save(path, model, header, static())
    return path


def edit(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a safetensors file whose wm2 document was changed; the tensors stay as they are."""
    data = source.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    document = json.loads(header["__metadata__"]["wm2"])
    change(document)
    header["__metadata__"]["wm2"] = json.dumps(document)
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return target


def test_round_trip_is_exact(written: Path) -> None:
    loaded, original = load(written), network()
    assert loaded.header.config == original.config
    assert loaded.header.normalizer == original.normalizer
    assert loaded.header.static == {"orog": "made up"}
    assert not loaded.header.trained
    assert not loaded.model.training  # type: ignore[attr-defined]
    assert all(torch.equal(loaded.static[name], values) for name, values in static().items())
    start = state(original)
    expected = original.decode(original.advance(original.encode(start), 6))
    found = loaded.model.decode(loaded.model.advance(loaded.model.encode(start), 6))
    assert torch.equal(found.pressure, expected.pressure)
    assert torch.equal(found.surface, expected.surface)


def test_the_same_contents_make_the_same_file(written: Path, tmp_path: Path) -> None:
    loaded = load(written)
    save(tmp_path / "again.safetensors", loaded.model, loaded.header, loaded.static)
    assert load(tmp_path / "again.safetensors").sha256 == loaded.sha256


def test_nothing_half_written_carries_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        (partial,) = tmp_path.iterdir()
        assert partial.name.endswith(".part")
        assert partial.stat().st_size > 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    model = network()
    with pytest.raises(ResourceError, match="No space left"):
        save(tmp_path / "net.safetensors", model, Header("weathermesh2", "x", model.config, model.normalizer), {})
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ResourceError, match="cannot write"):
        save(
            tmp_path / "no" / "net.safetensors", model, Header("weathermesh2", "x", model.config, model.normalizer), {}
        )


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are no weights at"):
        load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, -1000, -1])
def test_a_truncated_file_is_refused(written: Path, tmp_path: Path, kept: int) -> None:
    data = written.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("where", [-1, -5000, -50000])
def test_a_flipped_bit_in_a_weight_is_noticed(written: Path, tmp_path: Path, where: int) -> None:
    data = bytearray(written.read_bytes())
    data[where] ^= 0x10
    (tmp_path / "flipped.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="do not match the digest"):
        load(tmp_path / "flipped.safetensors")
    with pytest.raises(CheckpointError, match="do not match the digest"):
        verify(tmp_path / "flipped.safetensors")


def test_a_checkpoint_is_verified_without_loading_it(written: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    assert verify(written, lambda *what: told.append(what)) == load(written).sha256
    assert told[-1][1] == told[-1][2] - 1 > 50
    model = network()
    for name in ("decoder.pressure.weight", "decoder.pressure.bias"):
        dict(model.named_parameters())[name].fill_(float("inf"))
    save(tmp_path / "net.safetensors", model, Header("weathermesh2", "x", model.config, model.normalizer), {})
    with pytest.raises(CheckpointError) as caught:
        verify(tmp_path / "net.safetensors")
    assert caught.value.problems == (
        "model.decoder.pressure.bias has values that are not finite",
        "model.decoder.pressure.weight has values that are not finite",
    )


def test_the_layout_is_that_of_safetensors(written: Path, tmp_path: Path) -> None:
    """Its own writer makes the same of these tensors, but for the text before them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(written)
    save_file(tensors, tmp_path / "theirs.safetensors")
    bodies = []
    for path in (written, tmp_path / "theirs.safetensors"):
        data = path.read_bytes()
        bodies.append(data[8 + struct.unpack("<Q", data[:8])[0] :])
    assert bodies[0] == bodies[1]


def test_another_format_is_refused(written: Path, tmp_path: Path) -> None:
    newer = edit(written, tmp_path / "newer.safetensors", lambda document: document.update(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match=f"checkpoint format {FORMAT + 1}") as caught:
        load(newer)
    assert caught.value.hint == "install a newer wm2"
    assert caught.value.exit_code == 6


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a wm2 checkpoint"):
        read_header(tmp_path / "other.safetensors")


def test_a_typo_in_the_configuration_names_the_key(written: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["config"]["widht"] = document["config"].pop("width")

    with pytest.raises(CheckpointError) as caught:
        load(edit(written, tmp_path / "typo.safetensors", change))
    assert caught.value.problems == ("unknown key 'widht'; did you mean 'width'?", "missing key 'width'")


def test_tensors_that_do_not_fit_are_all_listed(written: Path, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["config"]["processors"] = [{"hours": 6, "blocks": 1}, {"hours": 3, "blocks": 1}]

    with pytest.raises(CheckpointError) as caught:
        load(edit(written, tmp_path / "other.safetensors", change))
    text = "\n".join(caught.value.problems)
    assert "processors.3.blocks.0.qkv.weight is missing" in text
    assert "processors.6.blocks.1.qkv.weight is not part of the model" in text


def test_an_unknown_model_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a 'graphcast'"):
        load(edit(written, tmp_path / "model.safetensors", lambda document: document.update(model="graphcast")))


def test_missing_statistics_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(edit(written, tmp_path / "stats.safetensors", lambda document: document["normalizer"]["mean"].pop("z500")))
    assert "no statistics for z500" in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "hacked").touch, ())

    torch.save({"state": Hostile()}, tmp_path / "hostile.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "hostile.safetensors")
    assert "wm2 weights import" in str(caught.value.hint)
    assert not (tmp_path / "hacked").exists()


def test_config_checks_types() -> None:
    from wm2cli.config import from_mapping, to_mapping
    from wm2cli.models.weathermesh2 import WeatherMesh2Config

    good = to_mapping(network().config)
    assert from_mapping(WeatherMesh2Config, json.loads(json.dumps(good))) == network().config
    bad = {**good, "width": "wide", "codec_norm": "batch", "patch": [2, 2]}
    with pytest.raises(ConfigError) as caught:
        from_mapping(WeatherMesh2Config, bad)
    assert len(caught.value.problems) == 3


def test_logarithmic_variables_survive_the_round_trip() -> None:
    model = network()
    statistics = model.decoder.statistics
    amounts = torch.tensor([0.0, 1e-8, 1e-5, 2e-3, 0.1])
    index = model.schema_out.surface.index("lsp_6h")
    surface = torch.full((1, len(model.schema_out.surface), 1, 5), 1.0)
    surface[0, index, 0] = amounts
    _, normal = statistics.normalize(torch.zeros(1, 5, 5, 1, 5), surface)
    _, back = statistics.denormalize(torch.zeros(1, 5, 5, 1, 5), normal)
    torch.testing.assert_close(back[0, index, 0], amounts, rtol=1e-4, atol=1e-9)
    # By hand: ln(2e-3 + 1e-7) = -6.21456, less the mean -11.79, by 3.34
    assert float(normal[0, index, 0, 3]) == pytest.approx((-6.21456 + 11.79) / 3.34, abs=1e-4)


def test_normalizer_refuses_a_spread_of_zero() -> None:
    model = network()
    flat = {**model.normalizer.std, "t2m": 0.0}
    with pytest.raises(CheckpointError, match="standard deviation of t2m is 0"):
        replace(model.normalizer, std=flat).check(model.inputs["era5"], model.schema_out)
    assert Normalizer.from_dict(json.loads(json.dumps(model.normalizer.to_dict()))) == model.normalizer
