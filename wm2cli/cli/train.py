"""`wm2 train`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wm2cli.cli.program import Json, app, finish, say
from wm2cli.errors import UsageError

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from wm2cli.training.loop import Listener, Step


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 train --recipe wm2-mini --data store.zarr --out runs/mini

wm2 train --recipe my.toml --data store.zarr --data hourly=hourly.zarr --set optimizer.name=adamw --out runs/adamw

wm2 train --resume --data store.zarr --out runs/mini

torchrun --nproc-per-node 2 -m wm2cli train --recipe wm2-mini --data store.zarr --out runs/mini"""
)
def train(
    data: Annotated[
        list[str], typer.Option(help="Training store of `wm2 preprocess`; NAME=PATH for the others a recipe names.",
                                show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    recipe: Annotated[
        str | None, typer.Option(help="Bundled recipe, or a .toml file; the run's own with --resume.",
                                 show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe: key=value, stages.0.steps=100.",
                                       show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="WM2_DEVICE")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each rank.", envvar="WM2_THREADS", show_default=False)
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Save and stop after so many steps of the run.", show_default=False)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events into the run.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a model by a recipe; Ctrl-C and SIGTERM save before they end it."""
    if recipe is None and not resume:
        raise UsageError("a training needs a recipe", hint="--recipe wm2-mini, or --resume for a run that began")
    if recipe is None and changes:
        raise UsageError("--set changes a recipe: give --recipe as well")
    stores: dict[str, Path] = {}
    for text in data:
        # A path may hold "=" too; names are words.
        name, path = (text.split("=", 1)) if re.match(r"[A-Za-z]\w*=", text) else ("main", text)
        if name in stores:
            raise UsageError(f"two stores are called '{name}'", hint="give others as NAME=PATH")
        stores[name] = Path(path).expanduser()
    from wm2cli.training.loop import Options
    from wm2cli.training.loop import train as command
    from wm2cli.training.recipes import load_recipe

    chosen = None if recipe is None else load_recipe(recipe, changes or ())
    options = Options(data=stores, out=out, recipe=chosen, resume=resume, device=device, threads=threads,
                      stop_after=stop_after, tensorboard=tensorboard)  # fmt: skip
    with _told() as listener:
        result = command(options, listener)
    if _is_first():
        finish(result.to_dict(), [result.weights], as_json=as_json)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _told() -> Iterator[Listener]:
    """A table that stays up to date on a terminal; a line now and then elsewhere. Of several ranks only one speaks."""
    from wm2cli.training.loop import Listener

    if not _is_first():
        yield Listener()
        return
    if not sys.stderr.isatty():
        every = _Lines()
        yield Listener(step=every.step, note=lambda text: say(f"note: {text}"))
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        picture = _Picture(live)
        yield Listener(progress=picture.progress, step=picture.step, note=picture.note)


class _Picture:
    """The table of the last step, and a line for what goes on between steps."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._table: list[Table] = []

    def progress(self, what: str, done: int, total: int) -> None:
        self._show(f"{what} {done}/{total}")

    def step(self, report: Step) -> None:
        self._table = [_table(report)]
        self._show()

    def note(self, text: str) -> None:
        self._live.console.print(f"note: {text}", markup=False, highlight=False)
        self._show()

    def _show(self, *lines: str) -> None:
        from rich.console import Group

        self._live.update(Group(*self._table, *lines))


class _Lines:
    """About a line a minute."""

    def __init__(self) -> None:
        self._last = 0.0

    def step(self, report: Step) -> None:
        now = time.monotonic()
        if now - self._last >= 60.0 or report.step == report.steps:
            self._last = now
            say(f"step {report.step}/{report.steps} {report.stage}: loss {report.loss:.4f}, "
                f"{report.samples_per_second:.2f} samples/s, horizon {report.horizon} h")  # fmt: skip


def _table(report: Step) -> Table:
    from rich.table import Table

    from wm2cli.training.log import labelled

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    seconds = sum(report.seconds.values()) or 1.0
    parts = "  ".join(f"{name} {value:.3f}" for name, value in labelled(vars(report)).items())
    rows = {
        "step": f"{report.step} of {report.steps}, stage {report.stage}",
        "loss": f"{report.loss:.4f}   {parts}",
        "rate": f"{report.rate:.2e}, gradient {report.gradient:.3g}, skipped {report.skipped}",
        "horizon": f"{report.horizon} h",
        "speed": f"{report.samples_per_second:.2f} samples/s; waiting for data "
        f"{100 * report.seconds['data'] / seconds:.1f} % of the step",
        "memory": f"{report.memory / 1e9:.2f} GB",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table
