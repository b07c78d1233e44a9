"""Opening files of any kind: what they are is told by their first bytes, never by their name."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from wm2cli.errors import DataError, ResourceError
from wm2cli.reading.fields import Inventory, SourceFile

Kind = Literal["grib", "netcdf", "zip"]

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"GRIB", "grib"), (b"\x89HDF\r\n\x1a\n", "netcdf"), (b"CDF\x01", "netcdf"), (b"CDF\x02", "netcdf"),
    (b"CDF\x05", "netcdf"), (b"PK\x03\x04", "zip"),
)  # fmt: skip
_OTHER = (
    (b"PK\x05\x06", "an empty ZIP archive", "get it again"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it first: xz -d"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it first: bunzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first: zstd -d"),
    (b"BUFR", "BUFR: observations, not fields", "give the analysis as GRIB or NetCDF"),
    (b"\x89PNG", "an image", "give the analysis as GRIB or NetCDF"),
    (b"%PDF", "a PDF document", "give the analysis as GRIB or NetCDF"),
)  # fmt: skip
_AGAIN = "get the file again; a login page or an error page may have been saved in its place"


def open_files(paths: Iterable[Path]) -> Inventory:
    """What a set of files holds, from their headers alone.

    Args:
        paths: GRIB or NetCDF files, or ZIP archives of them as the Climate Data Store makes them.

    Raises:
        DataError: Some cannot be read; each is named with the reason.
        ResourceError: No room to unpack a ZIP.
    """
    parts: list[Inventory] = []
    errors: list[DataError] = []
    names: list[Path] = list(paths)
    if not names:
        raise DataError("no input files", hint="name them with --input")
    for path in names:
        try:
            parts += _open(path)
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataError(
            f"{len(errors)} of {len(names)} input files cannot be read",
            problems=[line for error in errors for line in (error.message, *error.problems)],
            hint=errors[0].hint,
        )
    return Inventory.merge(parts)


def kind_of(label: str, head: bytes) -> Kind:
    """What a file is, from its first bytes.

    Args:
        label: Its name in messages.
        head: The first 512 bytes, or all of them.

    Raises:
        DataError: It is nothing that can be read; says what it is.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if not head:
        raise DataError(f"{label} is empty (0 bytes)", hint="get it again")
    for magic, text, hint in _OTHER:
        if head.startswith(magic):
            raise DataError(f"{label} is {text}", hint=hint)
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    if text.startswith(("<!doctype", "<html", "<?xml", "<error")):
        what = "XML" if text.startswith(("<?xml", "<error")) else "an HTML page"
        raise DataError(f"{label} is {what}, not weather data", hint=_AGAIN)
    if re.match(r"\d+(\.\d+)?:\d+:d=\d+", text):
        raise DataError(f"{label} is the index of a GRIB file (.idx)", hint="give the GRIB file itself")
    if text.startswith("{"):
        raise DataError(f"{label} is JSON, such as the .index of ECMWF open data", hint="give the GRIB file itself")
    if b"GRIB" in head:
        raise DataError(f"{label} has {head.index(b'GRIB')} foreign bytes before its first GRIB message",
                        hint="cut them off, or get the file again")  # fmt: skip
    if b"\x00" not in head and "\ufffd" not in text:
        raise DataError(f"{label} is a text file, not GRIB or NetCDF", hint=_AGAIN)
    raise DataError(f"{label} is neither GRIB nor NetCDF: it begins with {head[:8]!r}",
                    hint="give the analysis as GRIB or NetCDF")  # fmt: skip


def _open(path: Path) -> list[Inventory]:
    if path.is_dir():
        hint = "Zarr stores cannot be read as files" if (path / ".zmetadata").exists() else "name the files in it"
        raise DataError(f"{path} is a folder", hint=hint)
    if not path.exists():
        raise DataError(f"{path} does not exist", hint="check the path")
    file = SourceFile(path, path.name)
    if _kind(file) == "zip":
        return [open_one(member) for member in unpack(file)]
    return [open_one(file)]


def _kind(file: SourceFile) -> Kind:
    try:
        return kind_of(file.label, file.read(0, 512))
    except OSError as error:
        raise DataError(f"cannot read {file.label}: {error.strerror}") from error


def open_one(file: SourceFile) -> Inventory:
    """What one file holds that is no archive, from its headers alone.

    Raises:
        DataError: It cannot be read.
    """
    kind = _kind(file)
    if kind == "zip":
        raise DataError(f"{file.label} is a ZIP inside a ZIP", hint="unpack it first")
    # The readers bring libraries that take a while to load; only what is needed is imported.
    if kind == "grib":
        from wm2cli.reading.grib import open_grib

        return open_grib(file)
    from wm2cli.reading.netcdf import open_netcdf

    return open_netcdf(file)


def unpack(file: SourceFile) -> list[SourceFile]:
    """The members of a ZIP, unpacked into a folder that goes when nothing reads from it any more.

    Raises:
        DataError: It is damaged, empty, or packed in a way that is not known.
        ResourceError: No room to unpack it.
    """
    folder = tempfile.TemporaryDirectory(prefix="wm2-")
    found: list[SourceFile] = []
    try:
        with zipfile.ZipFile(file.path) as archive:
            for number, member in enumerate(archive.infolist()):
                if member.is_dir():
                    continue
                target = Path(folder.name) / str(number)  # never the name in the archive, which may point elsewhere
                with archive.open(member) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy, 2**20)
                label = f"{file.label}: {os.path.basename(member.filename)}"
                found.append(SourceFile(target, label, archive=file.path, keep=folder))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{file.label} is a damaged ZIP archive: {error}", hint="get it again") from error
    except RuntimeError as error:  # zipfile's word for a method (NotImplementedError) or a password it lacks
        raise DataError(f"{file.label} cannot be unpacked: {error}", hint="unpack it and give its files") from error
    except OSError as error:
        raise ResourceError(
            f"cannot unpack {file.label} into {folder.name}: {error.strerror}",
            hint="free some space, or set TMPDIR to a folder with more",
        ) from error
    if not found:
        raise DataError(f"{file.label} is an empty ZIP archive", hint="get it again")
    return found
