"""`wm2 weights`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from wm2cli.cli.program import Json, app, emit, progress_bar, say

weights_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Make checkpoints and look into them.")
app.add_typer(weights_app, name="weights")


@weights_app.command(
    "init",
    epilog="[bold]Examples[/bold]\n\nwm2 weights init --preset mini --seed 1 --out mini.safetensors\n\n"
    "wm2 weights init --preset wm2 --static orography.nc --static lsm.grib --out wm2.safetensors",
)
def weights_init(
    preset: Annotated[
        str,
        typer.Option(
            help="wm2, wm3, small, mini, tiny; stormer-1.40625-p2, stormer-1.40625-p4, stormer-mini, stormer-tiny."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0,
    static: Annotated[
        list[Path] | None,
        typer.Option(help="File with orography, land-sea mask or soil type, on any global grid; several may be given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write an untrained checkpoint."""
    from wm2cli import weights as command

    with progress_bar() as on_progress:
        on_progress(f"making {out}", 0, 1)
        written = command.init(preset, seed, out, static=static or (), overwrite=overwrite)
    say(f"note: {written.parameters:,} untrained parameters")
    if as_json:
        emit(
            {
                "format": command.FORMAT,
                "path": str(written.path),
                "parameters": written.parameters,
                "sha256": written.sha256,
            }
        )
    else:
        print(written.path)


@weights_app.command(
    "info",
    epilog="[bold]Examples[/bold]\n\nwm2 weights info\n\nwm2 weights info mini.safetensors\n\n"
    "wm2 weights info mini.safetensors --json | jq .grid",
)
def weights_info(
    file: Annotated[str, typer.Argument(help="Checkpoint, or the name of bundled weights.")] = "",
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds: model, grid, variables, statistics, static fields, origin."""
    from wm2cli import weights as command

    document = command.info(command.resolve(file or None))
    if as_json:
        emit(document)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(document):
        table.add_row(name, value)
    Console().print(table)


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, dict):
            if value:
                yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
