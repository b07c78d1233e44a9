"""What a file is, told by its first bytes, and what is said of files that are none."""

from __future__ import annotations

import gc
import gzip
import lzma
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from weather import GROUND, LEVELS, UPPER, encode, weather, write_cds_new, write_cds_old, write_grib

from wm2cli.errors import DataError, ResourceError, UsageError
from wm2cli.reading.fields import Inventory
from wm2cli.reading.inputs import open_files
from wm2cli.sources import SOURCES, Request, open_source

TEXT = {
    "page.grib": (b"<!DOCTYPE html><html><body>Log in</body></html>", "page.grib is an HTML page, not weather data"),
    "page2.grib": (b"\n\n  <html lang='en'>", "is an HTML page"),
    "s3.grib2": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "is XML, not weather data"),
    "empty.grib": (b"", r"empty.grib is empty \(0 bytes\)"),
    "gfs.idx": (
        b"1:0:d=2022101400:PRMSL:mean sea level:anl:\n2:990253:d=2022101400:CLMR",
        r"index of a GRIB file \(.idx\)",
    ),
    "some.index": (b'{"domain": "g", "date": "20240101"}', "is JSON, such as the .index of ECMWF open data"),
    "notes.nc": (b"temperature 12.3\n", "is a text file, not GRIB or NetCDF"),
    "bulletin.grib": (
        b"\x01\r\r\n042\r\r\nHTXA50 KWBC 010000\r\r\n" + encode("t", 500),
        "foreign bytes before its first",
    ),
    "some.bufr": (b"BUFR\x00\x01\x02\x04", "is BUFR: observations, not fields"),
    "x.grib.xz": (lzma.compress(b"GRIB"), "is compressed with xz"),
    "x.grib.gz": (gzip.compress(b"GRIB"), "is compressed with gzip"),
    "picture.nc": (b"\x89PNG\r\n\x1a\n\x00", "is an image"),
    "noise.nc": (b"\x00\xff\xfe\x01", "is neither GRIB nor NetCDF: it begins with"),
    "hollow.zip": (b"PK\x05\x06" + bytes(18), "is an empty ZIP archive"),
    "cut.zip": (b"PK\x03\x04" + bytes(40), "is a damaged ZIP archive"),
    "cut.nc": (b"\x89HDF\r\n\x1a\n" + bytes(40), "cut.nc cannot be opened as NetCDF"),
}


@pytest.mark.parametrize("name", TEXT)
def test_what_is_no_weather_is_named(tmp_path: Path, name: str) -> None:
    data, message = TEXT[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_files([tmp_path / name])
    assert name in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_the_extension_means_nothing(tmp_path: Path) -> None:
    write_grib(tmp_path / "a.nc", [("t", 500)])
    write_cds_old(tmp_path / "b.grib", ("t",))
    write_cds_new(tmp_path / "c.zip", ("t",))
    assert len(open_files([tmp_path / "a.nc", tmp_path / "b.grib", tmp_path / "c.zip"]).fields) == 1 + 2 * len(LEVELS)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    write_grib(tmp_path / "good.grib", [("t", 500)])
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_files([tmp_path / "empty", tmp_path / "good.grib", tmp_path / "absent", tmp_path])
    assert caught.value.message == "3 of 4 input files cannot be read"
    lines = "\n".join(caught.value.problems)
    assert "empty is empty" in lines
    assert "absent does not exist" in lines
    assert "is a folder" in lines


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no input files"):
        open_files([])
    (tmp_path / ".zmetadata").write_text("{}")
    with pytest.raises(DataError) as caught:
        open_files([tmp_path])
    assert "Zarr" in str(caught.value.hint)


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def cds_zip(tmp_path: Path) -> Path:
    """As the Climate Data Store sends a request for instantaneous and accumulated fields."""
    one = write_cds_new(tmp_path / "i.nc", GROUND)
    two = write_cds_new(tmp_path / "a.nc", ("tp",), step_type="accum")
    with zipfile.ZipFile(tmp_path / "download.zip", "w") as archive:
        archive.write(one, "data_stream-oper_stepType-instant.nc")
        archive.write(two, "data_stream-oper_stepType-accum.nc")
    return tmp_path / "download.zip"


def test_members_of_a_zip_are_read_and_cleared_away(tmp_path: Path, unpacked: Path) -> None:
    path = cds_zip(tmp_path)
    inventory: Inventory | None = open_files([path])
    assert inventory is not None
    assert {field.variable for field in inventory.fields} == {*GROUND, "tp"}
    field = inventory.find("t2m")[0]
    assert field.origin == "download.zip: data_stream-oper_stepType-instant.nc t2m[valid_time=0]"
    np.testing.assert_array_equal(field.read(), weather("t2m").astype(np.float32))
    assert field.file.name == str(path)
    assert len(field.file.sha256) == 64
    assert len(list(unpacked.iterdir())) == 1
    del field, inventory
    gc.collect()
    assert list(unpacked.iterdir()) == []


def test_odd_zips(tmp_path: Path, unpacked: Path) -> None:
    inner = cds_zip(tmp_path)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "../../evil.zip")
    with pytest.raises(DataError, match=r"outer.zip: evil.zip is a ZIP inside a ZIP"):
        open_files([tmp_path / "outer.zip"])
    data = bytearray(inner.read_bytes())
    data[2000:2100] = bytes(255 - byte for byte in data[2000:2100])
    (tmp_path / "flipped.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"flipped.zip is a damaged ZIP archive: Bad CRC-32"):
        open_files([tmp_path / "flipped.zip"])
    gc.collect()
    assert list(unpacked.iterdir()) == []


def test_no_room_to_unpack(tmp_path: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cds_zip(tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(ResourceError, match=r"cannot unpack download\.zip"):
        open_files([path])


def test_grib_and_netcdf_together(tmp_path: Path) -> None:
    ground = write_grib(tmp_path / "g.grib", [(name, None) for name in GROUND])
    upper = write_cds_new(tmp_path / "u.nc", UPPER)
    inventory = open_files([upper, ground])
    assert len(inventory.files) == 2
    assert len(inventory.fields) == len(UPPER) * len(LEVELS) + len(GROUND)


# The source `file`.


def test_the_source_plans_fetches_and_opens(tmp_path: Path) -> None:
    path = write_grib(tmp_path / "a.grib", [("t", 500)])
    source = open_source("file")
    pieces = source.plan(Request((np.datetime64("2024-01-01T06", "s"),), (path,)))
    files = [source.fetch(piece, tmp_path / "elsewhere") for piece in pieces]
    assert files == [path]
    assert not (tmp_path / "elsewhere").exists()
    assert len(source.open(files).fields) == 1


def test_the_source_needs_files() -> None:
    with pytest.raises(UsageError, match="needs files"):
        open_source("file").plan(Request((np.datetime64("2024-01-01T06", "s"),)))


def test_an_unknown_source_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown source 'fle'") as caught:
        open_source("fle")
    assert all(name in str(caught.value.hint) for name in SOURCES)


def test_a_damaged_member_of_a_zip_is_no_bug(tmp_path: Path) -> None:
    path = tmp_path / "cds.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.grib", bytes(range(256)) * 400)
    data = bytearray(path.read_bytes())
    start = 30 + len("data.grib")
    data[start : start + 8] = b"\xff" * 8  # no deflate stream begins like this
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged ZIP archive"):
        open_files([path])
