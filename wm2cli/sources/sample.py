"""The bundled sample: initial states of some dates of simulated weather, to try everything without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wm2cli import bundled
from wm2cli.errors import UsageError
from wm2cli.reading.fields import Inventory, time_text
from wm2cli.reading.inputs import open_files
from wm2cli.sources import Piece, Progress, Request, quiet


class Sample:
    """The source `sample`: a few states of a simulated atmosphere, with the truth that followed beside them."""

    name = "sample"
    remote = False
    keeps = False
    attribution = "the sample is simulated weather (jcm 3.0.0, SPEEDY physics), not observations"

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """One piece a date, where it lies.

        Raises:
            UsageError: The sample has no state for a time; names those it has.
            ResourceError: This installation lacks the sample.
        """
        request.refuse_options(self.name, ())
        states = bundled.sample_states()
        missing = [time_text(time) for time in request.times if time.astype("datetime64[s]") not in states]
        if missing or not request.times:
            have = ", ".join(time_text(time) for time in states)
            raise UsageError(f"the sample has no state for {', '.join(missing) or 'the latest time'}",
                             hint=f"it has {have}")  # fmt: skip
        return tuple(
            Piece(f"sample/{time_text(time)}", states[time].name, {"path": str(states[time])})
            for time in (time.astype("datetime64[s]") for time in request.times)
        )

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """The file itself."""
        del folder, on_progress
        return Path(piece.request["path"])

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)
