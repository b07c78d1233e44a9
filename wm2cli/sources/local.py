"""Files on this machine: GRIB 1 and 2, NetCDF, and the ZIP archives of the Climate Data Store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wm2cli.errors import UsageError
from wm2cli.reading.fields import Inventory
from wm2cli.reading.inputs import open_files
from wm2cli.sources import Piece, Progress, Request, quiet


class LocalFiles:
    """The source `file`: nothing is fetched, the files are read where they lie."""

    name = "file"
    remote = False
    keeps = False
    attribution = ""

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """One piece a file, in the order given.

        Raises:
            UsageError: No files were named.
        """
        request.refuse_options(self.name, ())
        if not request.paths:
            raise UsageError("the source 'file' needs files", hint="name them with --input")
        return tuple(Piece(str(path), path.name, {"path": str(path)}) for path in request.paths)

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """The file itself."""
        del folder, on_progress
        return Path(piece.request["path"])

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)
