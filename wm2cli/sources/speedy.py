"""Runs a general-circulation model: the SPEEDY physics of `jcm` on the spectral dynamical core of `dinosaur`.

T31 with 8 sigma levels and a time step of 30 minutes; sea-surface temperature, land temperature, soil moisture, snow
and albedo are the monthly climatologies that come with `jcm`, the same every year. The start is a perturbed state of
rest: its seed makes the world. Dynamics and physics belong to the two libraries; this module starts them, saves them,
and puts what they make onto pressure levels and a regular grid.

Sources: F. Molteni (2003, doi:10.1007/s00382-002-0268-2) for SPEEDY; the documentation of jcm 3 and dinosaur 1.5.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import ResourceError, ValuesError
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, LEVELS_13

GRID = Grid.regular(5.625, "cells")
"""Grid of what is written."""

LEVELS = LEVELS_13
"""Pressure levels in hPa of what is written."""

GAS_CONSTANT = 287.05  # J kg-1 K-1, dry air
LAPSE = 0.0065  # K m-1, below the lowest level and under the ground
MASS_SHIFT = np.log(0.983)
"""Added to ln of surface pressure at the start: the library's state of rest has 1000 hPa over mountains as well, some
17 hPa more air than the Earth has."""

Array = NDArray[np.float32]
Fields = dict[str, Array]


class World:
    """A simulated atmosphere that can be advanced a day at a time.

    Args:
        seed: Of the perturbation of the state of rest; two seeds are two independent worlds.
        begins: The first instant, at rest. The troposphere needs about a year to settle.
        cache: Folder for compiled code, so that the next run starts faster.

    Raises:
        ResourceError: The simulation's packages are not installed.
    """

    def __init__(self, seed: int, begins: np.datetime64, cache: Path | None = None) -> None:
        # The model is small: one thread is as fast as two, and leaves the other core to another seed.
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        try:
            import jax
            from jcm.forcing import ForcingData
            from jcm.model import Model
            from jcm.physics.speedy.speedy_coords import get_speedy_coords
            from jcm.terrain import TerrainData
        except ImportError as error:
            raise ResourceError(
                f"the simulation needs packages that are not here: {error}", hint="pip install 'wm2cli[simulation]'"
            ) from error
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache))
        coords = get_speedy_coords(8, 31)
        boundary = importlib.resources.files("jcm.data.bc.t30.clim")
        self._terrain = TerrainData.from_file(str(boundary / "terrain.nc"), coords)
        self._forcing = ForcingData.from_file(str(boundary / "forcing.nc"), coords=coords, align_mode="wrap_year")
        self._model = Model(coords=coords, terrain=self._terrain, time_step=30, start_time=str(begins))
        state = self._model.dycore.initial_state(None, random_seed=seed)
        state.log_surface_pressure = _shifted(state.log_surface_pressure, float(MASS_SHIFT))
        self._model.bootstrap_state(state)
        self._reader = _Reader(coords, np.asarray(self._terrain.orog))
        self.time = begins.astype("datetime64[h]")

    @property
    def static(self) -> Fields:
        """`orog` in metres and `lsm` as a fraction, (H, W)."""
        land = np.asarray(self._terrain.fmask)
        return {
            "orog": self._reader.horizontal(np.asarray(self._terrain.orog)),
            "lsm": np.clip(self._reader.horizontal(land), 0.0, 1.0),
        }

    def skip_day(self) -> None:
        """Advances a day and keeps nothing of it."""
        self._model.resume(self._forcing, save_interval=1.0, total_time=1.0)
        self.time = self.time + np.timedelta64(1, "D")

    def day(self, every: int) -> Fields:
        """Advances a day.

        Args:
            every: Hours between the fields, 1 or 6.

        Returns:
            By variable, (24 / every, L, H, W) or (24 / every, H, W): the instants `every`, 2 `every`, ... 24 hours
            after the beginning of the day; windows of 1 h and 6 h end at the instant. Those that reach back before the
            first day that was read are NaN.

        Raises:
            ValuesError: The simulation has broken down.
        """
        predictions = self._model.resume(self._forcing, save_interval=1 / 24, total_time=1.0)
        self.time = self.time + np.timedelta64(1, "D")
        fields = self._reader.read(predictions, every)
        broken = [name for name, values in fields.items() if not np.isfinite(values).all() and not name.endswith("_6h")]
        if broken:
            raise ValuesError(f"the simulation broke down on {self.time}: {', '.join(broken)} are not finite",
                              hint="choose another seed")  # fmt: skip
        return fields

    def save(self, path: Path) -> None:
        """Writes everything needed to go on from here bit for bit, as a file that is complete under its name."""
        from jcm.checkpoint import save_checkpoint

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{path.name}.{os.getpid()}.part"
        windows = partial.with_suffix(".npz")
        try:
            save_checkpoint(self._model, partial)
            np.savez(windows, allow_pickle=False, **self._reader.memory())
            windows.replace(path.with_suffix(".npz"))
            partial.replace(path)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
            windows.unlink(missing_ok=True)

    def load(self, path: Path, time: np.datetime64) -> None:
        """Goes on from a file that `save` wrote at that time."""
        from jcm.checkpoint import load_checkpoint

        load_checkpoint(self._model, path)
        with np.load(path.with_suffix(".npz")) as memory:
            self._reader.remember(dict(memory))
        self.time = time.astype("datetime64[h]")


def versions() -> dict[str, str]:
    """Versions of the packages that make the simulation; bits are the same only where these are."""
    return {name: importlib.metadata.version(name) for name in ("jcm", "dinosaur", "jax", "jaxlib")}


class _Reader:
    """From the model's levels and grid to pressure levels and the regular grid."""

    def __init__(self, coords: Any, orography: NDArray[Any]) -> None:
        import jax
        import jax.numpy as jnp
        from dinosaur.horizontal_interpolation import ConservativeRegridder
        from dinosaur.spherical_harmonic import Grid as SphericalGrid

        target = SphericalGrid.construct(31, GRID.shape[0] // 2, latitude_spacing="equiangular")
        self._regrid = ConservativeRegridder(coords.horizontal, target)
        sigma = jnp.log(jnp.asarray(coords.vertical.centers))
        surface_geopotential = jnp.asarray(orography) * GRAVITY

        def convert(instants: Mapping[str, Any], hourly: Mapping[str, Any]) -> dict[str, Any]:
            fields = _on_levels(instants, sigma) | _near_surface(instants, surface_geopotential) | dict(hourly)
            return {name: self._regrid(values) for name, values in fields.items()}

        self._convert = jax.jit(convert)
        self._past: Fields = {}

    def horizontal(self, field: NDArray[Any]) -> Array:
        """(lon, lat) south to north -> (H, W) north to south."""
        return _oriented(np.asarray(self._regrid(field)))

    def read(self, predictions: Any, every: int) -> Fields:
        """One day of hourly predictions (24, ...) -> fields every so many hours."""
        dynamics, physics = predictions.dynamics, predictions.physics
        chosen = slice(every - 1, None, every)
        flux, rain, sun = physics["_surface_flux"], physics["_condensation"].precls, physics["_shortwave_rad"]
        instants = {
            "z": dynamics.geopotential[chosen], "t": dynamics.temperature[chosen], "u": dynamics.u_wind[chosen],
            "v": dynamics.v_wind[chosen], "q": dynamics.specific_humidity[chosen],
            "sp": dynamics.normalized_surface_pressure[chosen] * 1e5,
            "t2m": flux.t0[chosen], "u10": flux.u0[chosen], "v10": flux.v0[chosen],
            "cloud": sun.cloudc[chosen], "stratus": sun.cloudstr[chosen],
        }  # fmt: skip
        # Rates at the end of each hour; g m-2 s-1 -> m h-1 and W m-2 -> J m-2 h-1.
        hourly = {"t0": flux.t0, "lsp": rain * 3.6e-3, "cp": physics["_convection"].precnv * 3.6e-3,
                  "ssr": sun.rsns * 3600.0}  # fmt: skip
        fields = {name: _oriented(np.asarray(values)) for name, values in self._convert(instants, hourly).items()}
        hours = {name: fields.pop(name) for name in hourly}
        return fields | self._windows(hours, chosen)

    def memory(self) -> Fields:
        """What windows over the next hours need of the past."""
        return self._past

    def remember(self, past: Fields) -> None:
        """Takes up what `memory` gave."""
        self._past = past

    def _windows(self, hours: Fields, chosen: slice) -> Fields:
        """Sums and extremes over the last hour and the last six, at the chosen instants.

        A rate is that of the end of its hour. A temperature extreme is over the instants at the full hours, both ends
        of the window included.
        """
        missing = np.full((6, *GRID.shape), np.nan, np.float32)
        whole = {name: np.concatenate([self._past.get(name, missing), values]) for name, values in hours.items()}
        self._past = {name: values[-6:].copy() for name, values in whole.items()}
        made: Fields = {}
        for window, suffix in ((1, ""), (6, "_6h")):
            for name in ("lsp", "cp", "ssr"):
                sums = [whole[name][6 - back : 30 - back] for back in range(window)]
                made[name + suffix] = np.stack(sums).sum(axis=0, dtype=np.float32)[chosen]
            ends = [whole["t0"][6 - back : 30 - back] for back in range(window + 1) if back <= 6]
            made["mx2t" + suffix] = np.max(ends, axis=0)[chosen]
            made["mn2t" + suffix] = np.min(ends, axis=0)[chosen]
        return made


def _on_levels(instants: Mapping[str, Any], sigma: Any) -> dict[str, Any]:
    """z, t, u, v, q (T, K, X, Y) on sigma levels -> (T, L, X, Y) on pressure levels.

    Between the model's levels everything is linear in ln p, except geopotential, which follows from that temperature by
    the hydrostatic equation. Below the lowest level wind and humidity are constant, temperature falls by 6.5 K/km with
    height and geopotential goes with it. Above the highest level (25 hPa) nothing is asked for.
    """
    import jax.numpy as jnp

    wanted = jnp.log(100.0 * jnp.asarray(LEVELS, jnp.float32))[:, None, None] - jnp.log(instants["sp"])[:, None]
    above = jnp.clip(jnp.searchsorted(sigma, wanted, side="right") - 1, 0, len(sigma) - 2)  # (T, L, X, Y)
    upper, lower = sigma[above], sigma[above + 1]
    share = jnp.clip((wanted - upper) / (lower - upper), 0.0, 1.0)
    made = {}
    for name in ("z", "t", "u", "v", "q"):
        first = jnp.take_along_axis(instants[name], above, axis=1)
        second = jnp.take_along_axis(instants[name], above + 1, axis=1)
        made[name] = (first + share * (second - first), second - first)
    fields = {name: pair[0] for name, pair in made.items()}
    # dz/dlnp = -R t with t linear in ln p: a parabola over the chord.
    fields["z"] = fields["z"] + 0.5 * GAS_CONSTANT * made["t"][1] * (lower - upper) * share * (1.0 - share)
    beneath = jnp.maximum(wanted - sigma[-1], 0.0)  # ln of pressure over that of the lowest level
    warmed = jnp.exp(beneath * (GAS_CONSTANT * LAPSE / GRAVITY))
    lowest_t = instants["t"][:, -1:]
    fields["z"] = fields["z"] - GRAVITY * lowest_t / LAPSE * (warmed - 1.0)
    fields["t"] = jnp.where(beneath > 0, lowest_t * warmed, fields["t"])
    # The spectral transform rings around dry places; the physics counts such water as none.
    fields["q"] = jnp.maximum(fields["q"], 0.0)
    return fields


def _near_surface(instants: Mapping[str, Any], surface_geopotential: Any) -> dict[str, Any]:
    """Surface variables (T, X, Y) that the model does not give itself.

    Pressure at sea level from the lowest level with 6.5 K/km; wind at 100 m between 10 m and the lowest level by the
    logarithm of height; dewpoint from the lowest level's humidity at the surface pressure over water (Magnus-Tetens as
    in IFS Cy47r3 Part IV eq. 7.5), at most the temperature; cloud as the larger of its two kinds.
    """
    import jax.numpy as jnp

    pressure, t, z = instants["sp"], instants["t"][:, -1], instants["z"][:, -1]
    height = jnp.maximum((z - surface_geopotential) / GRAVITY, 110.0)
    share = jnp.log(10.0) / jnp.log(height / 10.0)
    q = jnp.maximum(instants["q"][:, -1], 1e-7)
    logarithm = jnp.log(pressure * q / (0.622 + 0.378 * q) / 611.21) / 17.502
    dewpoint = (273.16 - 32.19 * logarithm) / (1.0 - logarithm)
    lowest = 0.95 * pressure
    return {
        "t2m": instants["t2m"],
        "d2m": jnp.minimum(dewpoint, instants["t2m"]),
        "u10": instants["u10"],
        "v10": instants["v10"],
        "u100": instants["u10"] + share * (instants["u"][:, -1] - instants["u10"]),
        "v100": instants["v10"] + share * (instants["v"][:, -1] - instants["v10"]),
        "msl": lowest * (1.0 + LAPSE * z / (GRAVITY * t)) ** (GRAVITY / (GAS_CONSTANT * LAPSE)),
        "tcc": jnp.clip(jnp.maximum(instants["cloud"], instants["stratus"]), 0.0, 1.0),
    }


def _oriented(values: NDArray[Any]) -> Array:
    """(..., lon, lat) south to north -> (..., lat, lon) north to south."""
    return np.ascontiguousarray(np.swapaxes(values, -1, -2)[..., ::-1, :], dtype=np.float32)


def _shifted(values: Any, shift: float) -> Any:
    """Adds a constant to a field given by its spherical harmonics: only the first coefficient changes.

    The harmonics are normalised to one over the sphere, so a constant c has the coefficient c sqrt(4 pi).
    """
    return values.at[..., 0, 0].add(shift * np.sqrt(4.0 * np.pi))
