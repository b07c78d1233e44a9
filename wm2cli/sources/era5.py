"""ERA5 from the Climate Data Store."""

from __future__ import annotations

import os
from pathlib import Path


def has_key() -> bool:
    """Whether a key for the Climate Data Store is set, in the environment or in cdsapi's file."""
    if os.environ.get("CDSAPI_KEY"):
        return True
    path = Path(os.environ.get("CDSAPI_RC") or "~/.cdsapirc").expanduser()
    try:
        return any(line.partition(":")[0].strip() == "key" for line in path.read_text().splitlines())
    except OSError:
        return False
