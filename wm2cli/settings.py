"""The user's settings: where remote archives are, and how patient wm2 is with them.

`wm2/config.toml` in the user's configuration folder (XDG Base Directory), or the file that `WM2_CONFIG` names; the
environment goes before the file. Credentials are not among them: those stay in the services' own files.

    [roots]
    gfs = ["https://mirror.example.org/gfs/"]

    [network]
    read_seconds = 120.0
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from wm2cli.config import from_mapping
from wm2cli.errors import ConfigError


@dataclass(frozen=True)
class Roots:
    """Where remote archives begin; an empty one means the public archives.

    Args:
        gfs, ifs: Tried in order (`WM2_GFS_ROOTS`, `WM2_IFS_ROOTS`, separated by commas).
        arco: The Zarr group of ARCO-ERA5 (`WM2_ARCO_ROOT`).
    """

    gfs: tuple[str, ...] = ()
    ifs: tuple[str, ...] = ()
    arco: str = ""


@dataclass(frozen=True)
class Network:
    """How remotes are asked.

    Args:
        attempts: Tries of one request before it counts as failed.
        connect_seconds: Wait for a connection.
        read_seconds: Wait for the next byte.
        first_pause, longest_pause: Seconds between tries; they double, with jitter.
        parallel: Requests under way at once.
    """

    attempts: int = 5
    connect_seconds: float = 15.0
    read_seconds: float = 60.0
    first_pause: float = 1.0
    longest_pause: float = 60.0
    parallel: int = 8

    def __post_init__(self) -> None:
        problems = [f"'network.{name}' must be positive, found {value}"
                    for name, value in vars(self).items() if value <= 0]  # fmt: skip
        if problems:
            raise ConfigError("the settings are not possible", problems=problems)


@dataclass(frozen=True)
class Settings:
    """Everything in the file."""

    roots: Roots = field(default_factory=Roots)
    network: Network = field(default_factory=Network)


def settings() -> Settings:
    """The settings in force.

    Raises:
        ConfigError: The file cannot be read, has an unknown key or an impossible value.
    """
    named = os.environ.get("WM2_CONFIG")
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(named or f"{folder}/wm2/config.toml").expanduser()
    made = Settings()
    if named or path.exists():
        try:
            made = from_mapping(Settings, tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the settings in {path}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"the settings in {path} cannot be used", problems=error.problems) from error
    roots = made.roots
    given = {name: tuple(part.strip() for part in os.environ.get(f"WM2_{name.upper()}_ROOTS", "").split(",") if part)
             for name in ("gfs", "ifs")}  # fmt: skip
    return replace(made, roots=Roots(given["gfs"] or roots.gfs, given["ifs"] or roots.ifs,
                                     os.environ.get("WM2_ARCO_ROOT") or roots.arco))  # fmt: skip
