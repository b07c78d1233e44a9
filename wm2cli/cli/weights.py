"""`wm2 weights`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from wm2cli.cli.program import Json, app, emit, facts, finish, progress_bar, say, size

weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="List, get, import, make and verify weights."
)
app.add_typer(weights_app, name="weights")

Cache = Annotated[Path | None, typer.Option(help="Folder for what is fetched.", envvar="WM2_CACHE", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]


@weights_app.command(
    "list", epilog="[bold]Examples[/bold]\n\nwm2 weights list\n\nwm2 weights list --json | jq -r '.weights[].name'"
)
def weights_list(cache: Cache = None, as_json: Json = False) -> None:
    """Show all weights that a name finds, and those that can be got, with size, licence and training data."""
    from wm2cli import weights as command

    rows = command.listing(cache)
    if as_json:
        emit({"format": command.FORMAT, "weights": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "where", "size", "licence", "trained on"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["where"], size(row["bytes"]), row["licence"] or "", row["data"])
    Console().print(table)


@weights_app.command(
    "get",
    epilog="[bold]Examples[/bold]\n\nwm2 weights get stormer-1.40625-p4\n\n"
    "wm2 weights get stormer-1.40625-p4 --plan\n\n"
    "HF_ENDPOINT=https://mirror.example wm2 weights get stormer-1.40625-p2",
)
def weights_get(
    name: Annotated[str, typer.Argument(help="Published weights; wm2 weights list shows them.", show_default=False)],
    cache: Cache = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is here.", envvar="WM2_OFFLINE")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be fetched; no network is touched.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch published weights from the Hugging Face Hub, check their sha256, and convert them into the cache."""
    from wm2cli import weights as command

    rows = [row for row in command.listing(cache) if row["name"] == name]
    row = rows[0] if rows else None
    if row is None or row["where"] in ("to get", "damaged"):
        found = command.gettable(name)
        say(f"note: {name}: {size(found.bytes)} from {found.url}, licence {found.licence}; "
            f"{size(found.kept_bytes)} stay in {command.weights_folder(cache)}")  # fmt: skip
    if plan:
        if as_json:
            emit({"format": command.FORMAT, **(row or {})})
        return
    with progress_bar() as on_progress:
        written = command.get(name, cache=cache, offline=offline, on_progress=on_progress)
    finish(written.to_dict(), [written.path], as_json=as_json, notes=written.notes)


@weights_app.command(
    "import",
    epilog="[bold]Examples[/bold]\n\n"
    "wm2 weights import stormer stormer_1.40625_patch_size_4.ckpt --out stormer.safetensors\n\n"
    "wm2 weights import stormer mine.ckpt --grid 32x64 --heads 6 --out mine.safetensors",
)
def weights_import(
    kind: Annotated[str, typer.Argument(help="Model of the weights: stormer.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="Checkpoint of PyTorch Lightning.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    grid: Annotated[
        str | None,
        typer.Option(help="Rows and columns, 128x256, where the file does not tell.", show_default=False),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, where the file does not tell.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the weights.", show_default=False)] = None,
    licence: Annotated[
        str | None, typer.Option(help="SPDX identifier (default that of the published weights).", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of weights in their authors' format; nothing in their file is executed."""
    from wm2cli import weights as command

    with progress_bar() as on_progress:
        written = command.import_weights(kind, file, out, grid=grid, heads=heads, name=name, licence=licence,
                                         overwrite=overwrite, on_progress=on_progress)  # fmt: skip
    finish(written.to_dict(), [written.path], as_json=as_json, notes=written.notes)


@weights_app.command(
    "verify",
    epilog="[bold]Examples[/bold]\n\nwm2 weights verify\n\nwm2 weights verify stormer-1.40625-p4 mine.safetensors",
)
def weights_verify(
    files: Annotated[list[str] | None, typer.Argument(help="Checkpoints, or names of weights.")] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Read checkpoints whole: their digest, and that their tensors are those of their model and finite."""
    from wm2cli import weights as command

    with progress_bar() as on_progress:
        made = [command.verify(command.resolve(file or None, cache), on_progress) for file in files or [""]]
    if as_json:
        emit({"format": command.FORMAT, "weights": [written.to_dict() for written in made]})
        return
    for written in made:
        say(f"note: {written.path}: {written.parameters:,} parameters, sha256 {written.sha256}")
        print(written.path)


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
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write an untrained checkpoint."""
    from wm2cli import weights as command

    with progress_bar() as on_progress:
        on_progress(f"making {out}", 0, 1)
        written = command.init(preset, seed, out, static=static or (), overwrite=overwrite)
    finish(written.to_dict(), [written.path], as_json=as_json, notes=written.notes)


@weights_app.command(
    "info",
    epilog="[bold]Examples[/bold]\n\nwm2 weights info\n\nwm2 weights info mini.safetensors\n\n"
    "wm2 weights info mini.safetensors --json | jq .grid",
)
def weights_info(
    file: Annotated[str, typer.Argument(help="Checkpoint, or the name of weights.")] = "",
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds: model, grid, variables, statistics, static fields, origin."""
    from wm2cli import weights as command

    document = command.info(command.resolve(file or None, cache))
    if as_json:
        emit(document)
        return
    facts(_flat(document))


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, dict):
            if value:
                yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
