"""An idealised atmosphere by formula: something to start from where there are no data and no network.

The balanced, baroclinically unstable jet of Jablonowski and Williamson (2006, doi:10.1256/qj.06.12), with its wind
perturbation over 40 N, 20 E, and the moisture of DCMIP 2012 test 4-2. Surface pressure is 1000 hPa everywhere, so its
vertical coordinate is pressure / 1000 hPa. It is a test case, not weather; forecasts from it say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm2cli.grid import Grid
from wm2cli.reading.fields import Inventory
from wm2cli.reading.inputs import open_files
from wm2cli.schema import GRAVITY, LEVELS_37
from wm2cli.sources import Piece, Progress, Request, quiet
from wm2cli.writing.canonical import write_fields

GRID = Grid.regular(1.5)
"""Grid of the fields; they are smooth, so every model grid is served by regridding."""

GAS_CONSTANT = 287.0  # J kg-1 K-1, dry air, as in the paper
RADIUS = 6.371229e6  # m
ROTATION = 7.29212e-5  # s-1

Array = NDArray[np.float64]


class Idealized:
    """The source `idealized`: one analytic state, the same for every date."""

    name = "idealized"
    remote = False
    keeps = True
    attribution = ""

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """One piece a time; every time is there."""
        request.refuse_options(self.name, ())
        texts = [str(time.astype("datetime64[s]")) for time in request.times]
        plain = [text.replace("-", "").replace(":", "") for text in texts]
        return tuple(
            Piece(f"idealized/{text}", f"idealized_{short}.nc", {"time": text})
            for text, short in zip(texts, plain, strict=True)
        )

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """Writes the state as NetCDF; a complete file is used again.

        Raises:
            ResourceError: The folder cannot be written.
        """
        del on_progress
        # Made anew each time: it takes a moment, and a file that some other version left would not be noticed.
        target = folder / piece.filename
        lat, lon = np.array(GRID.lat), np.array(GRID.lon)
        columns = [upper_air(float(level), lat, lon) for level in LEVELS_37]
        below = near_surface(lat, lon)
        write_fields(
            target,
            times=np.array([piece.request["time"]], "datetime64[s]"),
            grid=GRID,
            levels=LEVELS_37,
            fields={
                **{name: np.stack([column[name] for column in columns])[None] for name in "ztuvq"},
                **{name: values if name == "orog" else values[None] for name, values in below.items()},
            },
            attributes={"title": "Idealised atmosphere of Jablonowski and Williamson (2006)"},
        )
        return target

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)


def upper_air(level_hpa: float, lat: Array, lon: Array) -> dict[str, Array]:
    """z, t, u, v, q at a pressure level.

    Args:
        level_hpa: Pressure in hPa, up to 1000.
        lat, lon: Degrees; (H,) and (W,).

    Returns:
        (H, W) each, in the units of `wm2cli.schema`. Equations 2 to 10 of the paper.
    """
    eta = level_hpa / 1000.0
    angle = (eta - 0.252) * np.pi / 2
    phi, lam = np.deg2rad(lat)[:, None], np.deg2rad(lon)[None, :]
    jet = 35.0 * np.cos(angle) ** 1.5
    lapse, base, strat, tropopause = 0.005, 288.0, 4.8e5, 0.2
    exponent = GAS_CONSTANT * lapse / GRAVITY
    t_mean = base * eta**exponent
    z_mean = base * GRAVITY / lapse * (1 - eta**exponent)
    if eta < tropopause:
        t_mean += strat * (tropopause - eta) ** 5
        z_mean -= (
            GAS_CONSTANT
            * strat
            * (
                (np.log(eta / tropopause) + 137 / 60) * tropopause**5
                - 5 * tropopause**4 * eta
                + 5 * tropopause**3 * eta**2
                - 10 / 3 * tropopause**2 * eta**3
                + 5 / 4 * tropopause * eta**4
                - eta**5 / 5
            )
        )
    poleward = -2 * np.sin(phi) ** 6 * (np.cos(phi) ** 2 + 1 / 3) + 10 / 63
    planetary = (8 / 5 * np.cos(phi) ** 3 * (np.sin(phi) ** 2 + 2 / 3) - np.pi / 4) * RADIUS * ROTATION
    z = z_mean + jet * (poleward * jet + planetary)
    t = t_mean + 0.75 * eta * np.pi * 35.0 / GAS_CONSTANT * np.sin(angle) * np.sqrt(np.cos(angle)) * (
        poleward * 2 * jet + planetary
    )
    centre_lat, centre_lon = np.deg2rad(40.0), np.deg2rad(20.0)
    cosine = np.sin(centre_lat) * np.sin(phi) + np.cos(centre_lat) * np.cos(phi) * np.cos(lam - centre_lon)
    bump = np.exp(-((10 * np.arccos(np.clip(cosine, -1, 1))) ** 2))
    u = jet * np.sin(2 * phi) ** 2 + bump
    q = 0.018 * np.exp(-((phi / np.deg2rad(40.0)) ** 4)) * np.exp(-(((eta - 1) * 1e5 / 3.4e4) ** 2))
    shape = (lat.size, lon.size)
    return {
        "z": np.broadcast_to(z, shape),
        "t": np.broadcast_to(t, shape),
        "u": u,
        "v": np.zeros(shape),
        "q": np.broadcast_to(q, shape),
    }


def near_surface(lat: Array, lon: Array) -> dict[str, Array]:
    """The surface fields that belong to `upper_air`, (H, W) each.

    Wind at 100 m is that of the lowest level and falls to 10 m by the power of 1/7; the dewpoint is that of the lowest
    level's humidity over water (Magnus-Tetens), at most the temperature; cloud is a zonal profile without meaning.
    """
    lowest = upper_air(1000.0, lat, lon)
    vapour = 1e5 * lowest["q"] / (0.622 + 0.378 * lowest["q"])
    logarithm = np.log(np.maximum(vapour, 1.0) / 611.21) / 17.502
    dewpoint = (273.16 - 32.19 * logarithm) / (1 - logarithm)
    power = 0.1 ** (1 / 7)
    cloud = 0.5 + 0.3 * np.cos(6 * np.deg2rad(lat))[:, None]
    return {
        "t2m": lowest["t"],
        "d2m": np.clip(dewpoint, 200.0, lowest["t"]),
        "u10": power * lowest["u"],
        "v10": power * lowest["v"],
        "u100": lowest["u"],
        "v100": lowest["v"],
        "msl": 1e5 * np.exp(lowest["z"] / (GAS_CONSTANT * lowest["t"])),
        "tcc": np.broadcast_to(cloud, lowest["t"].shape),
        "orog": lowest["z"] / GRAVITY,
    }
