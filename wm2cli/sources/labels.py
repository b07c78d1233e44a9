"""Fields of a request by name and level, and grids by their spacing, as several sources need them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from wm2cli.errors import ConfigError, UsageError
from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES, level_text
from wm2cli.sources import Request

Label = tuple[str, float | None]
"""Variable and level in hPa."""

_END_LENGTH = 4
_UPLOAD_HOURS = 3.0


def label_text(label: Label) -> str:
    """`z500`, `t2m`."""
    name, level = label
    return name if level is None else f"{name}{level_text(level)}"


def labels_of(request: Request, source: str, known: Iterable[str]) -> tuple[Label, ...]:
    """The fields of a request.

    Raises:
        UsageError: Some are not in what the source offers; all are named.
    """
    schema, offered = request.schema, set(known)
    names = (*schema.pressure, *schema.surface)
    lacks = [name for name in names if name not in offered]
    if lacks:
        problems = [f"{name} ({VARIABLES[name].long_name})" for name in lacks]
        raise UsageError(f"the source '{source}' has no such fields at the time of an analysis", problems=problems,
                         hint=f"it has {' '.join(sorted(offered))}")  # fmt: skip
    upper: list[Label] = [(name, float(level)) for name in schema.pressure for level in schema.levels]
    return (*upper, *((name, None) for name in schema.surface))


def digest(labels: Sequence[Label]) -> str:
    """Tells files with different fields apart by name, whatever the order."""
    return hashlib.sha256("\n".join(sorted(map(label_text, labels))).encode()).hexdigest()[:8]


def grid_text(degrees: str, source: str, known: Iterable[str]) -> str:
    """A grid as file names have it: `0p25`.

    Raises:
        UsageError: Not a spacing that divides the globe.
    """
    try:
        Grid.regular(float(degrees))
        return f"{float(degrees):.2f}".replace(".", "p")
    except (ValueError, ConfigError, ZeroDivisionError):
        raise UsageError(f"the source '{source}' has no grid of '{degrees}' degrees",
                         hint=f"--option grid= takes {', '.join(known)}") from None  # fmt: skip


def grid_of(text: str) -> Grid:
    """The grid that `grid_text` names."""
    return Grid.regular(float(text.replace("p", ".")))
