"""Pictures: maps with coastlines, curves of scores by lead, spectra. Nothing is fetched to draw them.

Coastlines are those of Natural Earth 1:110m (public domain), countries merged and simplified to 0.04 degrees; they
stand in `coastline.npz` as hundredths of a degree. Matplotlib is loaded when something is drawn; no display is needed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.evaluation.datasets import split_label
from wm2cli.evaluation.results import Evaluation, display_units, lead_text, replacing
from wm2cli.schema import GRAVITY, level_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]
Region = tuple[float, float, float, float]

COLOURS = {"forecast": "#0072b2", "against": "#d55e00", "persistence": "#777777", "climatology": "#e69f00"}
"""Of the systems, apart for those who don't see all colours (Okabe and Ito)."""

NAMES = {
    "forecast": "forecast",
    "against": "other forecast",
    "persistence": "persistence",
    "climatology": "climatology",
}
_DASHES = {"forecast": "-", "against": "-", "persistence": "--", "climatology": ":"}
_PUBLISHED_COLOURS = ("#56b4e9", "#009e73", "#cc79a7", "#a05d00", "#4b3b8f", "#8a8a00", "#b22222", "#000000",
                      "#7fbf3f")  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a variable is drawn.

    Args:
        scale, offset: To the unit on the map.
        units: That unit.
        colours: Matplotlib's name of the colour map.
        step: Distance of contour lines in that unit, or None for no lines.
        symmetric: Whether zero is the middle of the colours.
        bounds: Bounds of the colours where they are not even (precipitation).
    """

    units: str
    colours: str
    scale: float = 1.0
    offset: float = 0.0
    step: float | None = None
    symmetric: bool = False
    bounds: tuple[float, ...] = ()


_RAIN = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_STYLES: Mapping[str, Style] = {
    "z": Style("dam", "viridis", 0.1 / GRAVITY, step=6.0),
    "t": Style("°C", "RdYlBu_r", offset=-273.15, step=5.0),
    "u": Style("m/s", "RdBu_r", symmetric=True),
    "v": Style("m/s", "RdBu_r", symmetric=True),
    "q": Style("g/kg", "YlGnBu", 1000.0),
    "r": Style("%", "YlGnBu", 100.0),
    "msl": Style("hPa", "cividis", 0.01, step=4.0),
    "sp": Style("hPa", "cividis", 0.01),
    "tcc": Style("%", "Greys_r", 100.0),
    "tp": Style("mm", "YlGnBu", 1000.0, bounds=_RAIN),
    "ssr": Style("MJ/m²", "inferno", 1e-6),
}
_LIKE = {"t2m": "t", "d2m": "t", "mx2t": "t", "mn2t": "t", "u10": "u", "v10": "v", "u100": "u", "v100": "v",
         "lsp": "tp", "cp": "tp"}  # fmt: skip


def style_of(label: str) -> Style:
    """How a channel is drawn; the layer decides how dense the lines are."""
    known, level = split_label(label)
    name = known.name.removesuffix("_6h")
    style = _STYLES.get(_LIKE.get(name, name), Style(known.units, "viridis"))
    if known.name == "z" and level is not None and level >= 700:
        return Style(style.units, style.colours, style.scale, step=4.0)
    if known.name == "z" and level is not None and level <= 300:
        return Style(style.units, style.colours, style.scale, step=12.0)
    return style


def title_of(label: str) -> str:
    """A channel in words: `Geopotential height at 500 hPa`."""
    known, level = split_label(label)
    name = "Geopotential height" if known.name == "z" else known.long_name
    return name if level is None else f"{name} at {level_text(level)} hPa"


def coastline() -> list[Array]:
    """Lines (N, 2) of longitude -180 to 180 and latitude in degrees."""
    with files("wm2cli.evaluation").joinpath("coastline.npz").open("rb") as stream, np.load(stream) as stored:
        points, ends = stored["points"] / 100.0, stored["ends"]
    return np.split(points, ends[:-1])


@dataclass(frozen=True, eq=False)
class Panel:
    """One map.

    Args:
        values: (H, W) in wm2's unit.
        title: Above it.
    """

    values: Values
    title: str


def draw_maps(panels: Sequence[Panel], lat: Array, lon: Array, label: str, *, title: str, footer: str = "",
              region: Region | None = None, difference: bool = False, error: bool = False,
              bounds_of: Sequence[Panel] = ()) -> Figure:  # fmt: skip
    """Maps of one channel, a panel each.

    Args:
        panels: What to draw.
        lat, lon: (H,) and (W,) degrees of a global grid.
        label: Channel, which decides unit and colours.
        title, footer: Of the whole picture.
        region: North, west, south, east in degrees.
        difference: Values are differences: zero is white, and no offset belongs to the unit.
        error: Values are sizes of errors: from zero on, in one hue.
        bounds_of: What the colours must fit, where it is more than these panels (an animation).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3
    rows = math.ceil(len(panels) / columns)
    aspect = _aspect(region)
    width = 11.0 if columns > 1 else 9.5
    height = rows * (width / columns * aspect + 0.45) + 1.25
    figure = Figure(figsize=(width, height), dpi=110, layout="compressed")
    FigureCanvasAgg(figure)
    style = style_of(label)
    if difference or error:
        factor, units = display_units(label)
        style = Style(units, "RdBu_r" if difference else "YlOrRd", factor, symmetric=difference)
    fields = [_shown(panel.values, style) for panel in panels]
    inside = _inside(lat, lon, region)
    bounds = _bounds([_shown(panel.values[inside], style) for panel in bounds_of or panels], style, from_zero=error)
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    drawn: Any = None
    for number, (axes, panel, field) in enumerate(zip(all_axes, panels, fields, strict=False)):
        drawn = _draw(axes, field, lat, lon, style, bounds, region)
        axes.set_title(panel.title, fontsize=10)
        axes.tick_params(labelleft=number % columns == 0, labelbottom=number + columns >= len(panels))
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    bar = figure.colorbar(drawn, ax=list(all_axes[: len(panels)]), orientation="horizontal", shrink=0.7, aspect=40,
                          pad=0.02)  # fmt: skip
    what = title_of(label).replace("Geopotential height", "Geopotential") if difference or error else title_of(label)
    bar.set_label(f"{what}, {style.units}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=12)
    if footer:
        figure.supxlabel(footer, fontsize=7.5, color="#444444")
    return figure


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Writes a picture: PNG, SVG or PDF by the suffix; it has its name when it is complete.

    Raises:
        ResourceError: It cannot be written.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=dpi)


def save_animation(frames: Sequence[Figure], path: Path, *, milliseconds: int = 400) -> None:
    """Writes figures of one size as an animated GIF.

    Raises:
        ResourceError: It cannot be written.
    """
    from PIL import Image

    pictures = []
    for frame in frames:
        stream = io.BytesIO()
        frame.savefig(stream, format="png", dpi=90)
        pictures.append(Image.open(stream).convert("P", palette=Image.Palette.ADAPTIVE))
    with replacing(path) as partial:
        pictures[0].save(
            partial, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0
        )


def embedded(figure: Figure, kind: str = "svg") -> str:
    """A picture as the `src` of an `img`, so that a page needs no other file."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=100)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode()}"


def draw_curves(evaluation: Evaluation, score: str, labels: Sequence[str], published: Mapping[str, Sequence[Any]],
                region: str | None = None) -> Figure:  # fmt: skip
    """A score by lead for some channels, a panel each, with baselines and published models.

    Args:
        evaluation: What was found.
        score: `rmse` or `acc`.
        labels: Channels.
        published: Channel -> `published.Curve`.
        region: Name; the first by default.
    """
    from matplotlib.figure import Figure

    labels = [
        label for label in labels if np.isfinite(evaluation.table(score)[:, evaluation.labels.index(label)]).any()
    ]
    columns = min(3, max(1, len(labels)))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(3.9 * columns + 0.3, 2.9 * rows + 0.9), layout="constrained")
    place = evaluation.regions.index(region) if region else 0
    days = np.asarray(evaluation.leads) / 24.0
    handles: dict[str, Any] = {}
    models = list(dict.fromkeys(curve.model for label in labels for curve in published.get(label, ())))
    for number, label in enumerate(labels):
        axes = figure.add_subplot(rows, columns, number + 1)
        factor, units = display_units(label) if score != "acc" else (1.0, "")
        for curve in published.get(label, ()):
            colour = _PUBLISHED_COLOURS[models.index(curve.model) % len(_PUBLISHED_COLOURS)]
            (line,) = axes.plot(np.asarray(curve.leads_hours) / 24.0, np.asarray(curve.values) * factor, color=colour,
                                linewidth=0.9, marker=".", markersize=3,
                                linestyle="-" if curve.truth == "ERA5" else (0, (4, 2)))  # fmt: skip
            handles.setdefault(f"{curve.model} vs {curve.truth}", line)
        for system in ("climatology", "persistence", "against", "forecast"):
            if system not in evaluation.scores or (score == "acc" and system == "climatology"):
                continue
            values = evaluation.table(score, system)[:, evaluation.labels.index(label), place] * factor
            (line,) = axes.plot(days, values, color=COLOURS[system], linestyle=_DASHES[system], label=NAMES[system],
                                linewidth=2.2 if system == "forecast" else 1.4,
                                marker="o" if len(days) < 12 else None, markersize=3.5)  # fmt: skip
            handles[NAMES[system]] = line
        axes.set_title(label if not units else f"{label}, {units}", fontsize=10)
        axes.set_xlim(0, max(days) * 1.02 if len(days) else 1)
        axes.set_ylim(*((min(0.0, axes.get_ylim()[0]), 1.02) if score == "acc" else (0, None)))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        if number + columns >= len(labels):
            axes.set_xlabel("lead, days", fontsize=9)
        if score == "acc":
            axes.axhline(0.6, color="#999999", linewidth=0.8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    order = [*(name for name in NAMES.values() if name in handles), *(n for n in handles if n not in NAMES.values())]
    if order:
        figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=min(4, len(order)),
                      fontsize=8, frameon=False)  # fmt: skip
    return figure


def draw_spectra(evaluation: Evaluation, leads: Sequence[int]) -> Figure:
    """Energy of forecast and truth by wavelength, a panel a channel; below, forecast over truth."""
    from matplotlib.figure import Figure

    spectra, labels = evaluation.spectra, evaluation.spectra["labels"][:4]
    figure = Figure(figsize=(3.4 * len(labels) + 0.4, 4.8), layout="constrained")
    grid = figure.subplots(2, len(labels), squeeze=False, sharex=True, height_ratios=(3, 2))
    waves = spectra["wavelengths_km"][1:]
    shades = np.linspace(0.25, 0.85, max(1, len(leads)))
    from matplotlib import colormaps

    for column, label in enumerate(labels):
        upper, lower = grid[0, column], grid[1, column]
        for lead, shade in zip(leads, shades, strict=True):
            place = evaluation.leads.index(lead)
            ours, truth = spectra["forecast"][place, column, 1:], spectra["truth"][place, column, 1:]
            colour = colormaps["viridis"](1 - shade)
            upper.loglog(waves, ours, color=colour, linewidth=1.3, label=f"forecast, {lead_text(lead)}")
            with np.errstate(divide="ignore", invalid="ignore"):
                lower.semilogx(waves, ours / truth, color=colour, linewidth=1.3)
        upper.loglog(waves, truth, color="black", linewidth=1.2, linestyle="--", label="truth")
        lower.axhline(1.0, color="black", linewidth=1.0, linestyle="--")
        lower.axhline(0.5, color="#999999", linewidth=0.8)
        lower.set_ylim(0, 1.6)
        lower.set_xlim(waves[0], waves[-1])
        upper.set_title(label, fontsize=10)
        lower.set_xlabel("wavelength at 45°, km", fontsize=9)
        if column == 0:
            upper.set_ylabel("energy density", fontsize=9)
            lower.set_ylabel("forecast / truth", fontsize=9)
        for axes in (upper, lower):
            axes.tick_params(labelsize=8)
            axes.grid(color="#e4e4e4", linewidth=0.6)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(7, len(names)), fontsize=8, frameon=False)
    return figure


def _aspect(region: Region | None) -> float:
    """Height of a map by its width."""
    if region is None:
        return 0.5
    north, _, south, _ = region
    return min(1.5, max(0.3, (north - south) / (_span(region) * _narrowing(north, south))))


def _inside(lat: Array, lon: Array, region: Region | None) -> Any:
    """Index of the cells in and just around a region, which decide the colours."""
    if region is None:
        return slice(None)
    gap = 360.0 / lon.size
    rows = np.flatnonzero((lat <= region[0] + gap) & (lat >= region[2] - gap))
    columns = np.flatnonzero((lon - region[1] + gap) % 360.0 <= _span(region) + 2 * gap)
    return np.ix_(rows, columns)


def _shown(values: Values, style: Style) -> Array:
    """Values in the unit of the map."""
    return np.asarray(values, np.float64) * style.scale + style.offset


def _bounds(fields: Sequence[Array], style: Style, *, from_zero: bool) -> Array:
    """Bounds of the colours, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    if style.bounds:
        return np.array(style.bounds)
    finite = np.concatenate([field[np.isfinite(field)] for field in fields])
    if not finite.size:
        return np.linspace(0.0, 1.0, 11)
    low, high = np.percentile(finite, [0.1, 99.9])
    if style.symmetric:
        high = max(abs(low), abs(high))
    low = -high if style.symmetric else 0.0 if from_zero else low
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 1.0, high + 1.0
    return np.asarray(MaxNLocator(nbins=16, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))


def _draw(axes: Any, field: Array, lat: Array, lon: Array, style: Style, bounds: Array, region: Region | None) -> Any:
    """One map on its axes, from the western edge of the region on; what the colours mean."""
    west = -180.0 if region is None else region[1]
    shift = int(np.argmin((lon - west) % 360.0))
    x = np.roll(lon, -shift)
    x = west + (x - west) % 360.0
    # One column more on either side, so that the map closes at its edges.
    x = np.concatenate([[x[-1] - 360.0], x, [x[0] + 360.0]])
    rolled = np.roll(field, -shift, axis=1)
    z = np.concatenate([rolled[:, -1:], rolled, rolled[:, :1]], axis=1)
    if abs(lat[0]) < 90.0:  # up to the poles, which lie half a row beyond the outermost ones
        lat = np.concatenate([[90.0], lat, [-90.0]])
        z = np.concatenate([np.full_like(z[:1], z[0].mean()), z, np.full_like(z[:1], z[-1].mean())])
    drawn = axes.contourf(x, lat, z, levels=bounds, cmap=style.colours, extend="both" if bounds[0] else "max")
    if style.step is not None and np.isfinite(field).any():
        first, last = np.floor(np.nanmin(field) / style.step), np.ceil(np.nanmax(field) / style.step)
        if last - first <= 60:
            heights = style.step * np.arange(first, last + 1)
            lines = axes.contour(x, lat, z, levels=heights, colors="black", linewidths=0.45, linestyles="solid",
                                 alpha=0.75)  # fmt: skip
            axes.clabel(lines, lines.levels[::4], fontsize=6, fmt="%g")
    for line in coastline():
        for turn in (-360.0, 0.0, 360.0):
            if line[:, 0].max() + turn >= x[0] and line[:, 0].min() + turn <= x[-1]:
                axes.plot(line[:, 0] + turn, line[:, 1], color="#303030", linewidth=0.6)
    north, south, east = (90.0, -90.0, 180.0) if region is None else (region[0], region[2], west + _span(region))
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    axes.set_aspect("equal" if region is None else 1.0 / _narrowing(north, south), "box")
    _label_degrees(axes, east - west, north - south)
    return drawn


def _span(region: Region) -> float:
    """Degrees of longitude from west to east."""
    return (region[3] - region[1]) % 360.0 or 360.0


def _narrowing(north: float, south: float) -> float:
    """Length of a degree of longitude by that of one of latitude, in the middle of a map."""
    return max(0.3, math.cos(math.radians((north + south) / 2)))


def _label_degrees(axes: Any, width: float, height: float) -> None:
    def text(value: float, positive: str, negative: str) -> str:
        turned = (value + 180.0) % 360.0 - 180.0 if positive == "E" else value
        side = "" if turned in (0.0, -180.0) else positive if turned > 0 else negative
        return f"{abs(turned):g}°{side}"

    from matplotlib.ticker import MultipleLocator

    for axis, span, sides in ((axes.xaxis, width, ("E", "W")), (axes.yaxis, height, ("N", "S"))):
        step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 90) if span / step <= 6.5)
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(lambda value, _, sides=sides: text(value, *sides))
    axes.tick_params(labelsize=7.5, length=2.5)
