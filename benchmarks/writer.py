"""How fast forecast files are written and read, and how small they get.

Fields are made up at 0.25 degrees: random, with a power spectrum that falls as k**-3 as that of the
atmosphere does from some thousand to some hundred kilometres, white noise of a thousandth of the standard
deviation on top (models leave some in all scales), and the means, spreads and levels of real variables;
humidity is log-normal, precipitation zero in most places. Real fields at this resolution compress a little
better than these.

    python benchmarks/writer.py                # tables on stderr, one JSON document on stdout; about a minute
    python benchmarks/writer.py --times 8      # longer forecasts
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, LEVELS_25, VARIABLES, standard_height, standard_temperature
from wm2cli.writing import chunks
from wm2cli.writing.chunks import Field, round_mantissa
from wm2cli.writing.forecast_file import ForecastWriter

PRESSURE = ("z", "t", "u", "v", "q")
SURFACE = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc",
           "mx2t_6h", "mn2t_6h", "lsp_6h", "cp_6h", "ssr_6h")  # fmt: skip
FEW_LEVELS = (50, 250, 500, 850, 1000)


class Fields:
    """Random fields, mixed from a few transforms so that making them does not take longer than writing
    them."""

    def __init__(self, grid: Grid, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        height, width = grid.shape
        rows = np.fft.fftfreq(2 * (height // 2 + 1), 1 / (2 * (height // 2 + 1)))[:, None]
        wavenumber = np.hypot(rows * width / rows.size / 2, np.fft.rfftfreq(width, 1 / width)[None])
        wavenumber[0, 0] = np.inf
        # A power spectrum of k**-3 summed over rings of radius k is an amplitude of k**-2 at each point.
        amplitude = wavenumber**-2.0
        self._modes = []
        for _ in range(6):
            phase = np.exp(2j * np.pi * self._random.random(amplitude.shape))
            field = np.fft.irfft2(amplitude * phase, s=(rows.size, width))[:height]
            self._modes.append(((field - field.mean()) / field.std()).astype(np.float32))

    def standard(self) -> Field:
        """A field of mean 0 and standard deviation 1; a mix of independent ones has their spectrum."""
        weights = self._random.standard_normal(len(self._modes)).astype(np.float32)
        weights /= np.linalg.norm(weights)
        mixed = sum(weight * mode for weight, mode in zip(weights, self._modes, strict=True))
        return np.asarray(mixed + 1e-3 * self._random.standard_normal(mixed.shape, np.float32), np.float32)

    def upper(self, name: str, level_hpa: float) -> Field:
        """A field on a pressure level in the variable's unit."""
        field = self.standard()
        if name == "q":
            return np.asarray(8e-3 * (level_hpa / 1000) ** 3 * np.exp(0.7 * field), np.float32)
        mean, spread = {
            "z": (GRAVITY * standard_height(level_hpa), 1500.0),
            "t": (standard_temperature(level_hpa), 12.0),
            "u": (8.0, 9.0),
            "v": (0.0, 9.0),
        }[name]
        return np.asarray(mean + spread * field, np.float32)

    def surface(self, name: str) -> Field:
        """A field with one value per column in the variable's unit."""
        field = self.standard()
        made = {
            "K": 283 + 14 * field,
            "m s-1": 6 * field,
            "m": 2e-3 * np.maximum(field - 1, 0),
            "J m-2": 5e6 * np.maximum(field, 0),
            "Pa": 101000 + 1200 * field,
            "1": np.clip(0.5 + 0.6 * field, 0, 1),
        }[VARIABLES[name].units]
        return np.asarray(made, np.float32)


def write_with_library(path: Path, fields: dict[str, Field], *, level: int, rounded: bool,
                       chunk: tuple[int, int, int] | None = None) -> dict[str, Any]:  # fmt: skip
    """Write fields (levels, rows, columns) through netCDF4 alone, and read them back in two ways."""
    whole = sum(field.nbytes for field in fields.values())
    packing: dict[str, Any] = {"compression": "zlib", "complevel": level, "shuffle": True} if level else {}
    started = time.perf_counter()
    with netCDF4.Dataset(path, "w") as dataset:
        for name, field in fields.items():
            deep, height, width = field.shape
            axes = ("time", f"level{deep}", "latitude", "longitude")
            for axis, size in zip(axes, (1, deep, height, width), strict=True):
                if axis not in dataset.dimensions:
                    dataset.createDimension(axis, size)
            shape = chunk or chunks.chunk_shape(deep, height, width)
            variable = dataset.createVariable(
                name, "f4", axes, fill_value=False,
                chunksizes=(1, min(shape[0], deep), *shape[1:]), **packing,
            )  # fmt: skip
            variable.set_auto_maskandscale(False)
            for first in range(0, deep, shape[0]):
                part = field[first : first + shape[0]]
                keep_bits = VARIABLES[name].keep_bits
                variable[0, first : first + shape[0]] = round_mantissa(part, keep_bits) if rounded else part
    written = time.perf_counter() - started
    size = path.stat().st_size
    names = [name for name, field in fields.items() if field.shape[0] > 1]
    row, column = 300, 700
    result = {"MB_per_s": whole / written / 1e6, "ratio": whole / size}
    for what, key in (("map_ms", (0, 1)), ("profile_ms", (0, slice(None), row, column))):
        with netCDF4.Dataset(path) as dataset:
            started = time.perf_counter()
            for name in names:
                dataset[name][key]
            result[what] = (time.perf_counter() - started) / len(names) * 1e3
    path.unlink()
    return result


def write_with_writer(path: Path, grid: Grid, states: list[tuple[Field, Field]], **options: Any) -> dict[str, Any]:
    """Write whole states through `ForecastWriter`."""
    leads = [6 * number for number in range(1, len(states) + 1)]
    options |= {
        "pressure": PRESSURE,
        "levels": LEVELS_25,
        "surface": SURFACE,
        "grid": grid,
        "overwrite": True,
    }
    started = time.perf_counter()
    with ForecastWriter(path, init=np.datetime64("2024-01-01"), leads_hours=leads, **options) as writer:
        for lead, (pressure, surface) in zip(leads, states, strict=True):
            writer.write(lead, pressure, surface)
    written = time.perf_counter() - started
    whole = sum(pressure.nbytes + surface.nbytes for pressure, surface in states)
    size = path.stat().st_size
    path.unlink()
    return {"MB_per_s": whole / written / 1e6, "ratio": whole / size, "s_per_time": written / len(states)}


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group, name and figures of every measurement."""
    grid = Grid.regular(0.25)
    fields = Fields(grid)
    few = {name: np.stack([fields.upper(name, level) for level in FEW_LEVELS]) for name in PRESSURE}
    sample = few | {name: fields.surface(name)[None] for name in SURFACE}
    path = arguments.folder / "wm2-benchmark.nc"
    for name, level, rounded in (
        ("uncompressed", 0, False),
        ("lossless, zlib 1", 1, False),
        ("rounded, zlib 1", 1, True),
        ("rounded, zlib 4", 4, True),
    ):
        yield "netCDF4, one thread", name, write_with_library(path, sample, level=level, rounded=rounded)
    height, width = grid.shape
    for name, chunk in (
        ("1 level, 1/16 map", (1, 181, 360)),
        ("1 level, 1/4 map", (1, 361, 720)),
        ("1 level, whole map", (1, height, width)),
        ("5 levels, 1/16 map", (5, 181, 360)),
        ("5 levels, whole map", (5, height, width)),
    ):
        yield (
            "chunk shapes, rounded, zlib 1",
            name,
            write_with_library(path, few, level=1, rounded=True, chunk=chunk),
        )
    pressure = np.stack([[fields.upper(name, level) for level in LEVELS_25] for name in PRESSURE])
    surface = np.stack([fields.surface(name) for name in SURFACE])
    # The same state again and again: zlib never looks from one chunk into another.
    states = [(pressure, surface)] * arguments.times
    every = len(os.sched_getaffinity(0))
    for threads in sorted({1, *[n for n in (2, 4, 8, 16) if n < every], every}):
        yield (
            "ForecastWriter",
            f"level 1, {threads} threads",
            write_with_writer(path, grid, states, threads=threads),
        )
    for name, options in (
        ("level 1, lossless", {"lossless": True}),
        ("level 2", {"compression_level": 2}),
        ("level 4", {"compression_level": 4}),
        ("level 0", {"compression_level": 0}),
    ):
        yield (
            "ForecastWriter",
            f"{name}, {every} threads",
            write_with_writer(path, grid, states[:1], **options),
        )


def main() -> None:
    """Measure, print a table on stderr and JSON on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=2, help="times in a forecast (default 2)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = arguments.folder or Path(folder)
        for group, name, figures in rows(arguments):
            if group not in results:
                print(f"\n{group}", file=sys.stderr)
            results.setdefault(group, {})[name] = {key: round(value, 3) for key, value in figures.items()}
            text = "  ".join(f"{key} {value:8.2f}" for key, value in figures.items())
            print(f"  {name:32} {text}", file=sys.stderr, flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
               "netCDF4": netCDF4.__version__, "hdf5": netCDF4.__hdf5libversion__, "python":
               platform.python_version()}  # fmt: skip
    print(json.dumps({"format": 1, "machine": machine, "fields": "721x1440", "results": results}, indent=1))


if __name__ == "__main__":
    main()
