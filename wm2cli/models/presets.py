"""Named configurations, from the full model to one for tests; all are built by the same code."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from wm2cli.errors import UsageError
from wm2cli.grid import Grid
from wm2cli.models import stormer
from wm2cli.models.stormer import StormerConfig
from wm2cli.models.weathermesh2 import EncoderConfig, ProcessorConfig, WeatherMesh2Config
from wm2cli.schema import LEVELS_13, LEVELS_25, LEVELS_28, Schema

UPPER = ("z", "t", "u", "v", "q")
SURFACE = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")
HOURLY = ("mx2t", "mn2t", "lsp", "cp", "ssr")
SIX_HOURLY = ("mx2t_6h", "mn2t_6h", "lsp_6h", "cp_6h", "ssr_6h")
STATIC = ("orog", "lsm", "slt")
CLOCK = ("radiation", "sin_altitude", "cos_altitude", "sin_hour", "cos_hour", "sin_year", "cos_year")


@dataclass(frozen=True)
class Preset:
    """A configuration with its grid.

    Args:
        description: One line for people.
        spacing, rows: Of `Grid.regular`.
        config: The architecture.
        kind: Key of `wm2cli.models.MODELS`.
    """

    description: str
    spacing: float
    rows: Literal["poles", "cells", "north"]
    config: WeatherMesh2Config | StormerConfig
    kind: str = "weathermesh2"

    @property
    def grid(self) -> Grid:
        """The grid of inputs and outputs."""
        return Grid.regular(self.spacing, self.rows)


def _inputs(levels: tuple[float, ...], forcing: tuple[str, ...] = CLOCK) -> Schema:
    return Schema(UPPER, levels, SURFACE, STATIC, forcing)


def _outputs(levels: tuple[float, ...], forcing: tuple[str, ...] = CLOCK) -> Schema:
    return Schema(UPPER, levels, SURFACE + HOURLY + SIX_HOURLY, STATIC, forcing)


def _stormer(patch: int, width: int, depth: int, heads: int) -> StormerConfig:
    return StormerConfig(stormer.SCHEMA, stormer.CHANNELS, patch, width, depth, heads)


_W3_FORCING = ("radiation", "hour", "sin_altitude", "cos_altitude")
_W3_OUT = Schema(
    UPPER, LEVELS_28,
    ("u10", "v10", "t2m", "msl", "ssr", "tcc", "d2m", "u100", "v100", "lsp", "cp", "mx2t", "mn2t",
     "lsp_6h", "cp_6h", "mx2t_6h", "mn2t_6h"), STATIC, _W3_FORCING,
)  # fmt: skip
_W3_IN = Schema(UPPER, LEVELS_28, ("u10", "v10", "t2m", "msl", "tcc", "d2m", "u100", "v100"), STATIC, _W3_FORCING)

PRESETS: dict[str, Preset] = {
    "wm2": Preset(
        "WeatherMesh-2: 0.25 degrees, 25 levels, latent 6 x 90 x 180 x 896",
        0.25,
        "north",
        WeatherMesh2Config(
            encoders=(EncoderConfig("era5", _inputs(LEVELS_25)),),
            processors=(ProcessorConfig(6, 10), ProcessorConfig(1, 10)),
            schema_out=_outputs(LEVELS_25),
            width=896, heads=28, patch=(5, 8, 8), window=(5, 7, 7), encoder_blocks=2, decoder_blocks=2,
            surface_widths=(96, 192, 512),
        ),
    ),
    "wm3": Preset(
        "WeatherMesh-3 as published: 0.25 degrees, 28 levels, two encoders, sine-cosine code",
        0.25,
        "north",
        WeatherMesh2Config(
            encoders=(EncoderConfig("gfs", _W3_IN, 0.1, 9), EncoderConfig("hres", _W3_IN, 0.9, 9)),
            processors=(ProcessorConfig(6, 8),),
            schema_out=_W3_OUT,
            width=1024, heads=32, patch=(4, 8, 8), window=(5, 7, 7), encoder_blocks=2, decoder_blocks=2,
            surface_widths=(96, 192, 512), codec_norm="instance", position="sincos", south_row=True,
            decoder_forcing=False,
        ),
    ),
    "small": Preset(
        "1 degree, 13 levels, latent 5 x 45 x 90 x 384: a single consumer GPU",
        1.0,
        "north",
        WeatherMesh2Config(
            encoders=(EncoderConfig("era5", _inputs(LEVELS_13)),),
            processors=(ProcessorConfig(6, 6), ProcessorConfig(1, 6)),
            schema_out=_outputs(LEVELS_13),
            width=384, heads=12, patch=(4, 4, 4), window=(3, 7, 7), encoder_blocks=2, decoder_blocks=2,
            surface_widths=(96, 192),
        ),
    ),
    "mini": Preset(
        "5.625 degrees, 13 levels, latent 2 x 16 x 32 x 288: a laptop without GPU",
        5.625,
        "cells",
        WeatherMesh2Config(
            encoders=(EncoderConfig("era5", _inputs(LEVELS_13)),),
            processors=(ProcessorConfig(6, 4), ProcessorConfig(1, 2)),
            schema_out=_outputs(LEVELS_13),
            width=288, heads=9, patch=(13, 2, 2), window=(2, 5, 5), encoder_blocks=1, decoder_blocks=1,
            surface_widths=(64,), codec_blocks=1, shortcut=True,
        ),
    ),
    "tiny": Preset(
        "5.625 degrees, 13 levels, latent 5 x 8 x 16 x 64: for tests",
        5.625,
        "cells",
        WeatherMesh2Config(
            encoders=(EncoderConfig("era5", _inputs(LEVELS_13)),),
            processors=(ProcessorConfig(6, 2), ProcessorConfig(1, 1)),
            schema_out=_outputs(LEVELS_13),
            width=64, heads=2, patch=(4, 4, 4), window=(3, 5, 5), encoder_blocks=1, decoder_blocks=1,
            surface_widths=(32, 48),
        ),
    ),
    "stormer-1.40625-p2": Preset(
        "Stormer as published, patches of 2 x 2: 1.40625 degrees, 13 levels, 8192 tokens of 1024",
        1.40625, "cells", _stormer(patch=2, width=1024, depth=24, heads=16), "stormer",
    ),
    "stormer-1.40625-p4": Preset(
        "Stormer as published, patches of 4 x 4: 1.40625 degrees, 13 levels, 2048 tokens of 1024",
        1.40625, "cells", _stormer(patch=4, width=1024, depth=24, heads=16), "stormer",
    ),
    "stormer-mini": Preset(
        "Stormer at 5.625 degrees, 13 levels, 512 tokens of 192: a laptop without GPU",
        5.625, "cells", _stormer(patch=2, width=192, depth=7, heads=6), "stormer",
    ),
    "stormer-tiny": Preset(
        "Stormer at 5.625 degrees, 13 levels, 128 tokens of 64: for tests",
        5.625, "cells", _stormer(patch=4, width=64, depth=2, heads=2), "stormer",
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: There is none; names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"there is no preset '{name}'", hint=f"{meant}known presets: {', '.join(PRESETS)}")
    return PRESETS[name]
