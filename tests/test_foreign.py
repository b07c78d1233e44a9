"""Published Stormer checkpoints as checkpoints of ours: exact, and refused as a whole when they are anything else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from wm2cli import checkpoint, hub
from wm2cli.cli import run
from wm2cli.foreign import parse_grid
from wm2cli.models.presets import PRESETS
from wm2cli.models.stormer import CHANNELS, published_statistics

GOLDEN = Path(__file__).parent / "golden"


def imported(path: Path, *flags: str) -> checkpoint.Checkpoint:
    """A file converted by the command, and loaded."""
    out = path.parent / "made.safetensors"
    assert run(["weights", "import", "stormer", str(path), "--out", str(out), *flags]) == 0
    return checkpoint.load(out)


@pytest.mark.parametrize(("patch", "grid", "heads"), [(2, "16x32", "4"), (4, "18x32", "8")])
def test_what_the_reference_makes_of_its_weights(patch: int, grid: str, heads: str, tmp_path: Path) -> None:
    """One step at each interval, and 24 h of each, to 1e-5; (18 rows fill no patches of four)."""
    (tmp_path / "a.ckpt").write_bytes((GOLDEN / f"stormer_tiny_p{patch}.ckpt").read_bytes())
    loaded = imported(tmp_path / "a.ckpt", "--grid", grid, "--heads", heads)
    model: Any = loaded.model
    stored = dict(np.load(GOLDEN / f"stormer_tiny_p{patch}_io.npz"))
    table = published_statistics()
    mean, std = (torch.tensor([column[name] for name in CHANNELS], dtype=torch.float64)[:, None, None]
                 for column in (table.mean, table.std))  # fmt: skip
    for hours in (6, 12, 24):
        x = torch.from_numpy(stored["x_normalized"])
        expected = torch.from_numpy(stored[f"tendency_{hours}h"])
        error = (model.increment(x, hours) - expected).abs().amax(dim=(0, 2, 3))
        assert (error < 1e-5 * expected.abs().amax(dim=(0, 2, 3))).all()
        for _ in range(24 // hours):
            x = model.update(x, model.increment(x, hours), hours)
        later = torch.from_numpy(stored[f"state24h_by{hours}h"]).double()
        # Beside 1e-5 standard deviations the rounding of the reference, which goes through physical units.
        allowed = 1e-5 * std + 4 * torch.finfo(torch.float32).eps * later.abs()
        assert ((x.double() * std + mean - later).abs() <= allowed).all()
    original = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert loaded.header.trained
    assert loaded.header.licence == "MIT"
    assert loaded.header.training["origin"]["file"] == "a.ckpt"
    assert loaded.header.training["origin"]["sha256"] == checkpoint.file_sha256(tmp_path / "a.ckpt")
    assert loaded.header.normalizer == table.__class__(
        {name: table.mean[name] for name in loaded.header.normalizer.mean},
        {name: table.std[name] for name in loaded.header.normalizer.std},
        {h: {name: table.difference_std[h][name] for name in loaded.header.normalizer.mean} for h in (6, 12, 24)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "patch", "width", "depth", "heads"),
    [("8x16", 2, 32, 1, 2), ("7x12", 4, 24, 2, 3), ("9x20", 2, 16, 3, 4), ("12x24", 4, 48, 1, 6)],
)
def test_networks_of_other_sizes(
    grid: str, patch: int, width: int, depth: int, heads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With foreign classes and optimizer states in the file, as the published ones have them."""
    model = lightning.network(grid, patch, width, depth, heads)
    path = lightning.write(tmp_path / "a.ckpt", model.state_dict())
    loaded = imported(path, "--grid", grid, "--heads", str(heads))
    assert "foreign names in the file were not looked up: climate_learn" in capsys.readouterr().err
    assert loaded.header.config == model.config
    assert loaded.model.grid == model.grid
    found: Any = loaded.model
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    x = lightning.states(model)
    for hours in (6, 12, 24):
        expected = model.increment(x, hours)
        error = (found.increment(x, hours) - expected).abs().amax(dim=(0, 2, 3))
        assert (error < 1e-5 * expected.abs().amax(dim=(0, 2, 3))).all()


def test_what_the_file_says_need_not_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lightning.network("8x16", 2)
    says = {"patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 4, "in_img_size": [8, 16],
            "variables": np.load(GOLDEN / "stormer_tiny_p2_io.npz")["variables"].tolist()}  # fmt: skip
    path = lightning.write(tmp_path / "a.ckpt", model.state_dict(), hyper_parameters={"lr": 1e-3, "net": says})
    assert imported(path).header.config == model.config
    words = ["weights", "import", "stormer", str(path), "--out", str(tmp_path / "b.safetensors")]
    capsys.readouterr()
    assert run([*words, "--heads", "8", "--grid", "16x8"]) == 6
    err = capsys.readouterr().err
    assert "its number of heads is 8 by --heads, 4 by its hyper_parameters" in err
    assert "its grid of 32 patches is 16x8 by --grid, 8x16 by its hyper_parameters" in err
    wrong = {**says, "patch_size": 4, "depth": 24, "mlp_ratio": 2, "variables": [*says["variables"][1:], "snow"]}  # type: ignore[misc]
    lightning.write(path, model.state_dict(), hyper_parameters=wrong)
    assert run(words) == 6
    err = capsys.readouterr().err
    assert "its patch is 2 by its tensors, 4 by its hyper_parameters" in err
    assert "its depth is 2 by its tensors, 24 by its hyper_parameters" in err
    assert "its mlp_ratio is 4.0 by its tensors, 2 by its hyper_parameters" in err
    assert "in another order: 10m_u_component_of_wind is number 0" in err
    assert not (tmp_path / "b.safetensors").exists()


def test_what_nothing_tells_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lightning.write(tmp_path / "a.ckpt", lightning.network("8x16", 2).state_dict())
    words = ["weights", "import", "stormer", str(path), "--out", str(tmp_path / "b.safetensors")]
    assert run(words) == 6
    err = capsys.readouterr().err
    assert "its number of heads is in no tensor, and nothing else tells it: give --heads N" in err
    assert "its grid of 32 patches is in no tensor, and nothing else tells it: give --grid ROWSxCOLUMNS" in err
    assert "hint: add --grid ROWSxCOLUMNS --heads N" in err
    assert run([*words, "--heads", "5", "--grid", "8x32"]) == 6
    err = capsys.readouterr().err
    assert "a grid of 8x32 has 64 patches of 2 x 2, its position table has 32" in err
    assert "width 32 is not a number of channels for each of 5 heads" in err
    assert run([*words, "--heads", "4", "--grid", "8by16"]) == 2
    assert "'8by16' is no grid" in capsys.readouterr().err


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "missing": (lambda state: [state.pop(name) for name in ("net.head.linear.bias", "net.blocks.0.attn.proj.weight")],
                ("net.head.linear.bias is missing", "net.blocks.0.attn.proj.weight is missing")),
    "left over": (lambda state: state.update({"net.norm.weight": torch.ones(32), "ema.x": torch.ones(1)}),
                  ("net.norm.weight is not part of the model", "ema.x is not part of the model")),
    "mis-shaped": (lambda state: state.update({"net.embed_norm_layer.bias": torch.ones(31)}),
                   ("net.embed_norm_layer.bias is (31,), expected (32,)",)),
    "no tensor": (lambda state: state.update({"net.head.linear.bias": 3}), ("net.head.linear.bias is no tensor",)),
    "a block": (lambda state: [state.pop(name) for name in list(state) if name.startswith("net.blocks.0.")],
                ("net.blocks.0.attn.qkv.weight is missing", "net.blocks.1.attn.qkv.weight is not part of the model")),
    "type": (lambda state: state.update({"net.head.linear.bias": state["net.head.linear.bias"].double()}),
             ("net.head.linear.bias has values of torch.float64",)),
    "sizes": (lambda state: [state.pop(name) for name in list(state) if "proj.weight" in name and "token" in name],
              ("its patch cannot be told",)),
    "variables": (lambda state: state.update({"net.embedding.channel_embed": torch.zeros(1, 70, 32)}),
                  ("it has 70 variables; only of the published 69 are order and statistics known",)),
    "everything": (lambda state: state.clear(), ("has no state_dict",)),
    "nothing finite": (lambda state: state["net.head.linear.bias"].fill_(float("nan")),
                       ("net.head.linear.bias has values that are not finite",)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_tensors_of_anything_else_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, texts = WRONG[name]
    state: dict[str, Tensor] = dict(lightning.network("8x16", 2).state_dict())
    change(state)
    path = lightning.write(tmp_path / "a.ckpt", state)
    words = ["weights", "import", "stormer", str(path), "--out", str(tmp_path / "b.safetensors")]
    assert run([*words, "--grid", "8x16", "--heads", "4"]) == 6
    err = capsys.readouterr().err
    assert all(text in err for text in texts), err
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_names_and_types_that_mean_the_same(tmp_path: Path) -> None:
    """The variable embedding once had a shorter name; float32 holds all values of float16."""
    model = lightning.network("8x16", 2)
    state: dict[str, Tensor] = {name: value.half() for name, value in model.state_dict().items()}
    state["net.channel_embed"] = state.pop("net.embedding.channel_embed")
    found = imported(lightning.write(tmp_path / "a.ckpt", state), "--grid", "8x16", "--heads", "4").model.state_dict()  # type: ignore[attr-defined]
    assert all(value.dtype == torch.float32 and torch.equal(value, model.state_dict()[name].half().float())
               for name, value in found.items())  # fmt: skip


def test_what_it_says_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lightning.write(tmp_path / "mine.ckpt", lightning.network("8x16", 2).state_dict(), global_step=0)
    flags = ["--grid", "8x16", "--heads", "4"]
    loaded = imported(path, *flags)
    assert "its licence is taken to be MIT" in capsys.readouterr().err
    assert loaded.header.name == "mine"
    assert not loaded.header.trained  # it says so itself: not a step was taken
    assert loaded.header.training["data"] == "not stated by the file"
    again = ["weights", "import", "stormer", str(path), "--out", str(loaded.path), *flags]
    assert run(again) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*again, "--overwrite", "--name", "other", "--licence", "CC0-1.0", "--json"]) == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["sha256"] == checkpoint.file_sha256(loaded.path) != loaded.sha256
    assert document["parameters"] == sum(value.numel() for value in loaded.model.parameters())  # type: ignore[attr-defined]
    assert "licence is taken" not in streams.err
    header, _ = checkpoint.read_header(loaded.path)
    assert (header.name, header.licence) == ("other", "CC0-1.0")
    assert run(["weights", "verify", str(loaded.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"][0]["sha256"] == document["sha256"]
    assert run(["weights", "info", str(loaded.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["origin"]["file"] == "mine.ckpt"


def test_a_published_file_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lightning.write(tmp_path / "a.ckpt", lightning.network("8x16", 2).state_dict(), global_step=0)
    known = hub.Published("toy", "someone/toy", "b.ckpt", path.stat().st_size, checkpoint.file_sha256(path), 1, "MIT",
                          "real weather", ("1979-01-01", "1980-12-31"))  # fmt: skip
    monkeypatch.setitem(hub.PUBLISHED, "toy", known)  # type: ignore[arg-type]
    header = imported(path, "--grid", "8x16", "--heads", "4").header
    assert (header.name, header.trained, header.training["data"]) == ("toy", True, "real weather")
    assert header.training["origin"]["url"] == "https://huggingface.co/someone/toy/blob/main/b.ckpt"
    assert "not known here" not in capsys.readouterr().err


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "b.safetensors")
    assert run(["weights", "import", "pangu", "a.ckpt", "--out", out]) == 2
    assert "wm2 cannot import 'pangu'" in capsys.readouterr().err
    assert run(["weights", "import", "stormer", str(tmp_path / "no.ckpt"), "--out", out]) == 6
    assert "there is no file" in capsys.readouterr().err
    path = lightning.write(tmp_path / "a.ckpt", lightning.network("8x16", 2).state_dict())
    words = ["weights", "import", "stormer", str(path), "--grid", "8x16", "--heads", "4", "--out"]
    assert run([*words, str(tmp_path / "no" / "b.safetensors")]) == 7
    torch.save([1, 2], path)
    assert run([*words, out]) == 6
    assert "has no state_dict; it holds list" in capsys.readouterr().err


@pytest.mark.parametrize("patch", [2, 4])
def test_files_of_full_size_need_no_flags(patch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """393 tensors, described as they are in the published file but for their bytes: all fit, and then these lack."""
    chosen = PRESETS[f"stormer-1.40625-p{patch}"]
    with torch.device("meta"):
        model: Any = __import__("wm2cli.models.stormer", fromlist=["Stormer"]).Stormer(
            chosen.config, chosen.grid, published_statistics()
        )
    lines = ["(dS'state_dict'\n(d"]
    for number, (name, value) in enumerate(model.state_dict().items()):
        shape = "".join(f"I{size}\n" for size in value.shape)
        stride = "".join(f"I{size}\n" for size in value.stride())
        lines.append(f"S'{name}'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\n"
                     f"S'{number}'\nS'cpu'\nI{value.numel()}\ntQI0\n({shape}t({stride}tI00\nNtRs")  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("x/data.pkl", "".join([*lines, "s."]))
    assert len(lines) == 394
    words = ["weights", "import", "stormer", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "b.safetensors")]
    assert run(words) == 6
    assert "is not complete: it lacks x/data/" in capsys.readouterr().err
    assert run([*words, "--heads", "8"]) == 6
    assert "its number of heads is 8 by --heads, 16 by its sizes" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "shape"), [("18x32", (18, 32)), ("5.625", (32, 64)), ("1.5", (121, 240))])
def test_grids(text: str, shape: tuple[int, int]) -> None:
    grid = parse_grid(text)
    assert grid.shape == shape
    assert grid.lat[0] == pytest.approx(90 - (90 / shape[0] if text != "1.5" else 0))
