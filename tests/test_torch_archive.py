"""Files of torch.save read without executing them: what comes back, and everything that must do no harm."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from wm2cli.errors import CheckpointError
from wm2cli.torch_archive import Foreign, TensorEntry, TorchArchive

GOLDEN = Path(__file__).parent / "golden"


def archive(path: Path, data: bytes, **storages: bytes) -> Path:
    """A file of torch.save with any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/byteorder", "little")
        for key, content in storages.items():
            file.writestr(f"x/data/{key.removeprefix('k')}", content)
    return path


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).view(5, 12)
    saved = {
        "plain": base, "view": base[1:4, ::3], "turned": base.T, "scalar": torch.tensor(2.5), "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.rand(3, 2)), "half": torch.rand(4).half(),
        "bfloat": torch.rand(4).bfloat16(), "double": torch.rand(2, dtype=torch.float64), "whole": torch.arange(5),
        "list": [1, "two", (3.0, None), True], "shared": [base, base],
    }  # fmt: skip
    torch.save(saved, tmp_path / "a.pt")
    with TorchArchive(tmp_path / "a.pt") as opened:
        assert list(opened.root) == list(saved)
        assert opened.root["list"] == saved["list"]
        for name, value in saved.items():
            if isinstance(value, torch.Tensor):
                found = opened.read(opened.root[name])
                assert found.dtype == value.dtype
                assert found.is_contiguous()
                assert torch.equal(found, value)
        assert opened.root["shared"][0] == opened.root["shared"][1] == opened.root["plain"]
        assert opened.foreign == ()


def test_tensors_with_attributes_come_without_them(tmp_path: Path) -> None:
    """These go through `_rebuild_from_type_v2`, as some of the published files do."""
    value = torch.rand(3)
    value.tag = "kept elsewhere"  # type: ignore[attr-defined]
    torch.save({"a": value}, tmp_path / "a.pt")
    assert b"_rebuild_from_type_v2" in (tmp_path / "a.pt").read_bytes()
    with TorchArchive(tmp_path / "a.pt") as opened:
        assert torch.equal(opened.read(opened.root["a"]), torch.tensor(value.tolist()))


def test_classes_that_are_not_installed_do_no_harm(tmp_path: Path) -> None:
    path = lightning.write(tmp_path / "a.ckpt", {"net.x": torch.rand(3, 2)})
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        torch.load(path, weights_only=False)
    with TorchArchive(path) as opened:
        assert set(lightning.FOREIGN) <= set(opened.foreign)
        assert isinstance(opened.root["lr_schedulers"][0]["scheduler"][0], Foreign)
        assert opened.root["hyper_parameters"]["lr"] == 5e-7
        moment = opened.root["optimizer_states"][0]["state"][0]["exp_avg"]
        assert moment.shape == (3, 2)
        assert opened.read(opened.root["state_dict"]["net.x"]).shape == (3, 2)


class Call:
    """Pickled, it is a call of something."""

    def __init__(self, what: Callable[..., Any], *arguments: Any) -> None:
        self.what = (what, arguments)

    def __reduce__(self) -> Any:
        return self.what


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles each of which, read by `pickle.loads`, would leave a file or change this program."""
    touch = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    shell = f"touch {marker}".encode()
    return {
        "call": pickle.dumps(Call(os.system, shell.decode())),
        "exec": pickle.dumps({"state_dict": Call(exec, touch)}),
        "protocol 0": b"cos\nsystem\n(S'" + shell + b"'\ntR.",
        "instance": b"(S'" + shell + b"'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'" + shell + b"'\no.",
        "stacked": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(shell)]) + shell + b"\x85R.",
        "dotted": b"\x80\x04\x8c\x05torch\x8c\x12_utils.os.system()\x93)R.",
        "through getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\nS'system'\ntR(S'" + shell + b"'\ntR.",
        "through a rebuilder": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNS'" + shell + b"'\n\x85NtR.",
        "as an object's state": b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb.",
        "new object": b"\x80\x02csubprocess\nPopen\n(S'" + shell + b"'\nt\x81.",
        "changing a rebuilder": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__call__'\ncos\nsystem\nsb.",
        "its slots": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__call__'\ncos\nsystem\nstb.",
        "changing a placeholder": b"cos\nsystem\n}S'__call__'\ncos\nsystem\nsb.",
        "changing a storage type": b"ctorch\nFloatStorage\n}S'dtype'\nS'x'\nsb.",
        "an extension": b"\x82\x01.",
        "as a storage": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
    }


REFUSED = {"changing a rebuilder", "its slots", "changing a placeholder", "changing a storage type", "an extension",
           "as a storage"}  # fmt: skip
"""What does not even pass for a file with foreign classes."""


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_a_hostile_pickle_executes_nothing(name: str, tmp_path: Path) -> None:
    before = dict(vars(Foreign))
    path = archive(tmp_path / "a.ckpt", hostile(tmp_path / "hacked")[name])
    if name in REFUSED:
        with pytest.raises(CheckpointError, match="damaged"):
            TorchArchive(path)
    else:
        with TorchArchive(path) as opened:
            assert opened.foreign
            assert isinstance(opened.root, (dict, Foreign))
    assert not (tmp_path / "hacked").exists()
    assert dict(vars(Foreign)) == before
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")  # whatever it did, the next file is read as ever
    with TorchArchive(tmp_path / "good.pt") as opened:
        assert opened.read(opened.root["a"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["call", "exec", "protocol 0", "instance", "object", "stacked"])
def test_such_pickles_are_hostile_indeed(name: str, tmp_path: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(hostile(tmp_path / "hacked")[name])  # noqa: S301
    assert (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"garbage", b"(I1\nI2\n", b"\x80\x63N.", b"]" * 5 + b"a" * 9 + b".", b"N" + b"0" * 9 + b".",
        b"\x8e" + struct.pack("<Q", 2**60) + b"x.", b"\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"Nr\xff\xff\xff\x7f.", b"Np99999999999\n.", b"I" + b"9" * 9000 + b"\n.", b"(" * 50 + b"t" * 51 + b".",
        b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", b"(S'storage'\ntQ.", b"S'a'\nQ.",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_a_damaged_file(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        TorchArchive(archive(tmp_path / "a.pt", data))


def tensor(storage: str = "ctorch\nFloatStorage\n", key: str = "S'0'\n", length: str = "I6\n", offset: str = "I0\n",
           shape: str = "(I2\nI3\nt", stride: str = "(I3\nI1\nt") -> bytes:  # fmt: skip
    """A tensor as a pickle describes it."""
    text = f"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\n{storage}{key}S'cpu'\n{length}tQ{offset}{shape}{stride}"
    return f"{text}I00\nNtR.".encode()


def test_a_tensor_by_hand(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", tensor(), k0=struct.pack("<6f", *range(6)))
    with TorchArchive(path) as opened:
        assert opened.read(opened.root).tolist() == [[0, 1, 2], [3, 4, 5]]


WRONG: list[tuple[dict[str, str], str]] = [
    ({"offset": "I1\n"}, "cannot be"),
    ({"offset": "I-1\n"}, "cannot be"),
    ({"shape": "(I3\nI3\nt"}, "cannot be"),
    ({"shape": "(I-1\nI3\nt"}, "cannot be"),
    ({"shape": "(I1000000\nI1000000\nt", "stride": "(I0\nI0\nt"}, "cannot be"),
    ({"stride": "(I-3\nI1\nt"}, "cannot be"),
    ({"stride": "(I1\nt"}, "cannot be"),
    ({"shape": "S'ab'\n"}, "cannot be"),
    ({"shape": "N"}, "cannot be"),
    ({"key": "I0\n"}, "cannot be"),
    ({"length": "S'6'\n"}, "cannot be"),
    ({"length": "I7\n"}, "has 24 bytes, expected 28"),
    ({"length": "I99999999999999\n"}, "has 24 bytes"),
    ({"storage": "ctorch\nDoubleStorage\n"}, "has 24 bytes, expected 48"),
    ({"key": "S'1'\n"}, "lacks x/data/1"),
    ({"key": "S'../data.pkl'\n"}, "lacks x/data/../data.pkl"),
]


@pytest.mark.parametrize(("change", "text"), WRONG, ids=str)
def test_tensors_that_cannot_be(change: dict[str, str], text: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", tensor(**change), k0=bytes(24))
    with TorchArchive(path) as opened:
        assert isinstance(opened.root, TensorEntry)
        with pytest.raises(CheckpointError) as caught:
            opened.read(opened.root)
    assert text in caught.value.message


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    where = bytes(data).index(torch.arange(1000.0).numpy().tobytes()) + 1234
    data[where] ^= 1
    (tmp_path / "b.pt").write_bytes(bytes(data))
    with TorchArchive(tmp_path / "b.pt") as opened, pytest.raises(CheckpointError, match=r"damaged.*CRC"):
        opened.read(opened.root["a"])


@pytest.mark.parametrize("kept", [0, 3, 400, -400, -1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    data = (GOLDEN / "stormer_tiny_p2.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[:kept])
    with pytest.raises(
        CheckpointError, match="not a complete file of torch.save" if kept not in (0, 3) else "cut.ckpt"
    ):
        TorchArchive(tmp_path / "cut.ckpt")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    def refused(text: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            TorchArchive(tmp_path / "a")
        assert text in caught.value.message
        return str(caught.value.hint)

    refused("No such file")
    torch.save({"a": torch.ones(2)}, tmp_path / "a", _use_new_zipfile_serialization=False)
    assert "if it is in the layout before that and you trust it" in refused("no ZIP archive")
    (tmp_path / "a").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5570407547\n")
    assert "git lfs pull" in refused("a pointer to a file")
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        file.writestr("readme", "no checkpoint")
    refused("none of torch.save")
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        file.writestr("x/data.pkl", pickle.dumps({}))
        file.writestr("x/byteorder", "big")
    refused("another byte order")
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"N0" * 10**6 + b"N.")
    refused("none of weights")


def test_a_storage_is_read_once_for_all_tensors_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.arange(100.0)
    torch.save([flat[start : start + 10] for start in range(0, 100, 10)], tmp_path / "a.pt")
    read: list[str] = []
    real = zipfile.ZipFile.open

    def counting(self: zipfile.ZipFile, name: Any, *more: Any) -> Any:
        read.append(getattr(name, "filename", name))
        return real(self, name, *more)

    monkeypatch.setattr(zipfile.ZipFile, "open", counting)
    with TorchArchive(tmp_path / "a.pt") as file:
        assert [float(file.read(entry)[0]) for entry in file.root] == list(range(0, 100, 10))
    assert read == ["a/byteorder", "a/data.pkl", "a/data/0"]
