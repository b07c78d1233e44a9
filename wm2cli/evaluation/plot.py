"""`wm2 plot`: maps of a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation import plots
from wm2cli.evaluation.datasets import Values, split_label
from wm2cli.evaluation.forecasts import Forecasts, open_forecasts
from wm2cli.evaluation.provenance import SIMULATED
from wm2cli.evaluation.results import lead_text
from wm2cli.evaluation.series import on_grid, open_truth
from wm2cli.reading.fields import time_text, times_text
from wm2cli.sources import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STILL = (".png", ".svg", ".pdf")
MOST_PANELS = 12


@dataclass(frozen=True)
class Options:
    """What to draw.

    Args:
        forecast: NetCDF file, Zarr store or GRIB file.
        channel: `z500`, `t2m`.
        out: PNG, SVG or PDF with a panel a lead, or GIF with a picture a lead.
        leads_hours: Leads; all by default in a GIF, and up to six spread over all in a picture.
        init: Start, where the file has several.
        region: North, west, south, east.
        truth: File or store; then forecast minus truth is drawn.
        overwrite: Replace an existing picture.
    """

    forecast: Path
    channel: str
    out: Path
    leads_hours: tuple[int, ...] | None = None
    init: np.datetime64 | None = None
    region: plots.Region | None = None
    truth: Path | None = None
    overwrite: bool = False


def plot(options: Options, on_progress: Progress = lambda what, done, total: None) -> Path:
    """Draws maps of one channel.

    Returns:
        The picture.

    Raises:
        UsageError: Unknown channel, lead, init or kind of picture, or the picture exists; all are listed.
        DataError: The forecast or the truth cannot be read or lacks something.
        ResourceError: The picture cannot be written.
    """
    _check_target(options)
    on_progress("opening", 0, 1)
    forecasts = open_forecasts([options.forecast])
    split_label(options.channel)
    moving = options.out.suffix == ".gif"
    init, leads = _choose(options, forecasts, moving)
    truth = None if options.truth is None else open_truth([options.truth])
    panels = []
    for done, lead in enumerate(leads):
        on_progress("reading", done, len(leads))
        valid = init + np.timedelta64(lead, "h")
        values = forecasts.read(init, [lead], [options.channel])[0]
        field: Values = values.mean(axis=0)[0] if forecasts.members else values[0]
        if truth is not None:
            if options.channel not in truth.channels or not truth.has(valid):
                raise DataError(f"the truth has no {options.channel} at {time_text(valid)}")
            found = truth.read([valid], [options.channel])[0]
            field = np.asarray(field - on_grid(found, truth.grid, forecasts.grid)[0])
        panels.append(plots.Panel(field, f"+{lead_text(lead)}, valid {_time(valid)}"))
    title = plots.title_of(options.channel) + (" minus truth" if truth is not None else "") + f", from {_time(init)}"
    footer = _footer(forecasts)
    difference, grid = truth is not None, forecasts.grid

    def draw(some: Sequence[plots.Panel]) -> Figure:
        return plots.draw_maps(some, grid.lat, grid.lon, options.channel, title=title, footer=footer,
                               region=options.region, difference=difference, bounds_of=panels)  # fmt: skip

    if moving:
        frames = []
        for done, panel in enumerate(panels):
            on_progress("drawing", done, len(panels))
            frames.append(draw([panel]))
        plots.save_animation(frames, options.out)
    else:
        on_progress("drawing", 0, 1)
        plots.save(draw(panels), options.out)
    return options.out


def _check_target(options: Options) -> None:
    if options.out.suffix not in (*STILL, ".gif"):
        raise UsageError(f"'{options.out.name}' is no kind of picture that can be drawn",
                         hint=f"the name must end in {', '.join(STILL)} or .gif")  # fmt: skip
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"{options.out} exists already", hint="give --overwrite to replace it, or another --out")
    if options.region is not None:
        north, west, south, east = options.region
        if not (-90 <= south < north <= 90 and -360 <= west <= 360 and -360 <= east <= 360):
            raise UsageError(f"the region {north:g}/{west:g}/{south:g}/{east:g} is not possible",
                             hint="a region is north/west/south/east in degrees, such as 72/-25/34/45")  # fmt: skip


def _choose(options: Options, forecasts: Forecasts, moving: bool) -> tuple[np.datetime64, tuple[int, ...]]:
    problems = []
    if options.channel not in forecasts.channels:
        problems.append(f"the forecast has no {options.channel}; it has {_shortened(forecasts.channels)}")
    init = forecasts.inits[0] if options.init is None else options.init
    if options.init is None and len(forecasts.inits) > 1:
        problems.append(f"there are several inits: {times_text(forecasts.inits)}; --init chooses one")
    elif init not in forecasts.inits:
        problems.append(f"there is no init {time_text(init)}; there are {times_text(forecasts.inits)}")
    there = [lead for lead in forecasts.leads if forecasts.has(init, lead)]
    leads = options.leads_hours
    if leads is None:
        daily = there if moving else [lead for lead in there if lead and lead % 24 == 0] or there
        spread = np.linspace(0, len(daily) - 1, len(daily) if moving else min(6, len(daily)))
        leads = tuple(daily[number] for number in np.unique(spread.round().astype(int)))
    problems += [f"there is no lead of {lead} h" for lead in leads if lead not in there]
    if len(leads) > MOST_PANELS and not moving:
        problems.append(f"{len(leads)} panels are too many for one picture; {MOST_PANELS} at most, or a .gif")
    if problems:
        raise UsageError("the picture cannot be drawn", problems=problems)
    return init, leads


def _footer(forecasts: Forecasts) -> str:
    attributes = forecasts.attributes
    names = ("model", "weights_name", "initial_conditions_source")
    known = [str(attributes[name]) for name in names if attributes.get(name)]
    text = " · ".join([*dict.fromkeys(known), forecasts.label])
    if forecasts.members:
        text += f" · mean of {forecasts.members} members"
    if forecasts.kind == "simulated":
        text += f"\n{SIMULATED.split(':')[0].upper()}, not the real atmosphere"
    if str(attributes.get("weights_trained", "yes")) == "no":
        text += "\nUNTRAINED WEIGHTS: this is no forecast"
    return text


def _time(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ") + " UTC"


def _shortened(labels: Sequence[str]) -> str:
    return " ".join(labels) if len(labels) <= 16 else f"{' '.join(labels[:12])} ... ({len(labels)} channels)"
