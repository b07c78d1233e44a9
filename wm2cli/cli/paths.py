"""`wm2 paths`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wm2cli.cli.arguments import collect, parse_leads
from wm2cli.cli.program import Json, app, finish, progress_bar, say
from wm2cli.errors import UsageError


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 paths --weights stormer.safetensors --data store.zarr --leads 24,72,120 --out paths.json

wm2 paths --weights stormer.safetensors --data store.zarr --leads 240 --sample 64 --keep 16 --out ten.json"""
)
def paths(
    data: Annotated[Path, typer.Option(help="Training store of wm2 preprocess.", show_default=False)],
    leads: Annotated[str, typer.Option(help="Lead times in hours: 24,72,120.", show_default=False)],
    out: Annotated[Path, typer.Option(help="JSON file, for wm2 forecast --paths.", show_default=False)],
    weights: Annotated[str | None, typer.Option(help="Checkpoint.", envvar="WM2_WEIGHTS", show_default=False)] = None,
    sample: Annotated[int, typer.Option(help="Paths drawn at random for each lead time.")] = 128,
    keep: Annotated[int, typer.Option(help="How many of them, the best ones, are kept.")] = 32,
    times: Annotated[int, typer.Option(help="Initial times, spread evenly over the split.")] = 64,
    split: Annotated[str, typer.Option(help="Part of the store; report scores on another.")] = "validation",
    seed: Annotated[int, typer.Option(help="The same seed draws the same paths.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="WM2_DEVICE")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.", envvar="WM2_PRECISION")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", envvar="WM2_THREADS", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Find the paths of steps whose mean is a good forecast: the best m of n, as Stormer does."""
    problems: list[str] = []
    hours = collect(problems, parse_leads, leads)
    if precision not in ("auto", "fp32", "bf16"):
        problems.append(f"--precision must be auto, fp32 or bf16, found '{precision}'")
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli import paths as command
    from wm2cli.rollout import runs_of

    options = command.Options(
        data=data, leads=hours, out=out, weights=weights, sample=sample, keep=keep, times=times, split=split, seed=seed,
        device=device, precision=precision,  # type: ignore[arg-type]
        threads=threads, overwrite=overwrite,
    )  # fmt: skip
    with progress_bar() as on_progress:
        result = command.select(options, on_progress)
    for note in result.notes:
        say(f"note: {note}")
    for one in result.found:
        say(
            f"{one.lead} h: {one.scored} of {one.possible:,} paths scored {one.scores[0]:.4g} to {one.worst:.4g}; "
            f"the {len(one.kept)} up to {one.scores[-1]:.4g} are kept, best {command.text_of(runs_of(one.kept[0]))}"
        )
    finish(result.to_dict(), [result.path], as_json=as_json)
