"""Published weights on the Hugging Face Hub: which there are, and how they are fetched.

The hub answers for a file of a repository with its commit, its size and its sha256, and sends elsewhere for the bytes.
A file is fetched at one commit, resumed where it broke off, and used when its sha256 is the one that is known here; of
a file whose sha256 is not known here, when it is the one that the hub announced. `HF_ENDPOINT` names a mirror;
`HF_TOKEN` goes to the endpoint's host alone.

Source: the protocol of `huggingface_hub` (resolve addresses, X-Repo-Commit, X-Linked-Size, X-Linked-Etag).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from wm2cli.errors import CheckpointError, RemoteError, ResourceError
from wm2cli.sources import Progress, quiet
from wm2cli.transfer import Door, Meter, shown

ENDPOINT = "https://huggingface.co"

_ROOM = "free some space, or set --cache or WM2_CACHE to a folder with more"

STORMER_DATA = "ERA5 1979-2018 at 1.40625 degrees, 6-hourly, 13 levels (WeatherBench 2)"


@dataclass(frozen=True)
class Published:
    """Weights that others have published.

    Args:
        name: How they are called on the command line.
        repository, file: On the hub.
        bytes: Size of the file.
        sha256: Of the file; None when it is not known here.
        kept_bytes: Size of what is made of it, roughly.
        licence: SPDX identifier, as the repository states it.
        data: What they were trained on.
        train: First and last day of it.
        revision: Commit, or branch when the commit is not known here.
    """

    name: str
    repository: str
    file: str
    bytes: int
    sha256: str | None
    kept_bytes: int
    licence: str
    data: str
    train: tuple[str, str]
    revision: str = "main"

    @property
    def url(self) -> str:
        """Where people find it."""
        return f"{ENDPOINT}/{self.repository}/blob/{self.revision}/{self.file}"


# Sizes and the sha256 are those that others found in what they had fetched and loaded (figures public in November
# 2026). The hub itself was out of reach then: the commit is not known, nor the sha256 of the first file.
PUBLISHED: Mapping[str, Published] = {
    made.name: made
    for made in (
        Published(
            "stormer-1.40625-p2", "tungnd/stormer", "stormer_1.40625_patch_size_2.ckpt", 5_625_590_679, None,
            1_875_100_000, "MIT", STORMER_DATA, ("1979-01-01", "2018-12-31"),
        ),
        Published(
            "stormer-1.40625-p4", "tungnd/stormer", "stormer_1.40625_patch_size_4.ckpt", 5_570_407_547,
            "7fde884ec85f4999d4bcb02d55ed72c142912071956083ebee08d3d86311b695", 1_856_700_000, "MIT", STORMER_DATA,
            ("1979-01-01", "2018-12-31"),
        ),
    )
}  # fmt: skip
"""By name; each is of the network whose preset has that name."""


@dataclass(frozen=True)
class Fetched:
    """A published file on this machine.

    Args:
        path: The file.
        url: Where it came from, at its commit when the hub named one.
        sha256: Of its bytes.
        known: Whether that is the sha256 known here, or only the one that the hub announced.
    """

    path: Path
    url: str
    sha256: str
    known: bool


def fetch(wanted: Published, folder: Path, on_progress: Progress = quiet) -> Fetched:
    """Gets a published file, or finds it complete; goes on where an earlier run stopped.

    Args:
        folder: Where it is to be. It keeps a name for unfinished things there: it is to be converted and removed.

    Raises:
        RemoteError: The hub refused or failed.
        CheckpointError: The hub has another file under that name, or what came is damaged.
        ResourceError: The folder cannot be written, or the disk is full.
    """
    partial, whole = folder / f".{wanted.file}.part", folder / f".{wanted.file}.whole.part"
    endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    place = f"{endpoint}/{wanted.repository}/resolve/{{}}/{quote(wanted.file)}"
    try:
        with Door(tokens={urlsplit(endpoint).netloc: token} if token else None) as door:
            on_progress(f"asking {urlsplit(endpoint).netloc} for {wanted.name}", 0, 1)
            commit, expected = _agree(wanted, door.head(place.format(wanted.revision)))
            url = place.format(commit or wanted.revision)
            if not whole.is_file() or whole.stat().st_size != wanted.bytes:
                _check_space(wanted, partial)
                meter = Meter(on_progress, f"fetching {wanted.name}", wanted.bytes)
                door.download(url, partial, wanted.bytes, on_bytes=meter.add)
                partial.replace(whole)
    except RemoteError as error:
        ways = "HF_ENDPOINT names a mirror, HF_TOKEN logs in; `wm2 weights import` takes a file that is here already"
        error.hint = f"{error.hint}; {ways}" if error.hint else ways
        raise
    except OSError as error:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise ResourceError(f"cannot write {partial}: {error.strerror or error}", hint=_ROOM) from error
    found = file_sha256(whole, on_progress)
    if found != expected:
        whole.unlink(missing_ok=True)
        raise CheckpointError(f"what came for {wanted.name} is damaged: its sha256 is {found}, expected {expected}",
                              hint="it was removed; fetch it again, or from another HF_ENDPOINT")  # fmt: skip
    return Fetched(whole, shown(url), found, wanted.sha256 is not None)


def _agree(wanted: Published, announced: Mapping[str, str]) -> tuple[str | None, str]:
    """The commit, when the hub names one, and the sha256 to expect; nothing is fetched that cannot be right."""
    commit = announced.get("X-Repo-Commit", "")
    tag = announced.get("X-Linked-Etag", announced.get("ETag", "")).strip('W/"')
    size = announced.get("X-Linked-Size", "")
    sha256 = tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None
    problems = []
    if size and size != str(wanted.bytes):
        problems.append(f"it has {size} bytes, expected {wanted.bytes}")
    if wanted.sha256 is not None and sha256 not in (None, wanted.sha256):
        problems.append(f"its sha256 is {sha256}, expected {wanted.sha256}")
    if problems:
        raise CheckpointError(f"the hub has another file as {wanted.repository}/{wanted.file}", problems=problems,
                              hint="a newer wm2 may know it; `wm2 weights import` takes any file")  # fmt: skip
    expected = wanted.sha256 or sha256
    if expected is None:
        raise RemoteError(f"the sha256 of {wanted.repository}/{wanted.file} is not known here, and the hub announces "
                          "none: what came could not be checked")  # fmt: skip
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None, expected


def _check_space(wanted: Published, partial: Path) -> None:
    held = partial.stat().st_size if partial.exists() else 0
    needed, free = wanted.bytes - held + wanted.kept_bytes, shutil.disk_usage(partial.parent).free
    if free < needed:
        raise ResourceError(f"{wanted.name} needs {needed / 1e9:.1f} GB for a while, {partial.parent} has "
                            f"{free / 1e9:.1f} GB", hint=_ROOM)  # fmt: skip


def file_sha256(path: Path, on_progress: Progress = quiet) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    size, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
            done += len(block)
            on_progress(f"checking {path.name}, MB", round(done / 1e6), max(round(size / 1e6), 1))
    return digest.hexdigest()
