"""What inputs say about themselves: measured or simulated, title, source, and whom to thank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wm2cli.errors import DataError
from wm2cli.reading.series import Catalogue

KINDS = ("reanalysis", "analysis", "simulated")
ERA5 = "Contains modified Copernicus Climate Change Service information (ERA5, CC-BY 4.0)"

_THANKS = ("attribution", "license", "licence", "references", "comment")


@dataclass(frozen=True)
class Described:
    """Where data come from.

    Args:
        kind: One of `KINDS`.
        title, source: One line each.
        attribution: Lines that go along with the data.
        notes: What was taken for granted.
    """

    kind: str
    title: str
    source: str
    attribution: tuple[str, ...]
    notes: tuple[str, ...]


def describe_inputs(catalogue: Catalogue, kind: str | None, title: str | None) -> Described:
    """What a store says about its data.

    Args:
        catalogue: Of the inputs.
        kind, title: As the user says; found in the files when None.

    Raises:
        DataError: Simulated and other data are mixed, or the user calls simulated data something else.
    """
    said = {file.label: str(catalogue.attributes.get(file.label, {}).get("wm2_kind", "")) for file in catalogue.files}
    kinds = set(said.values())
    if len(kinds) > 1:
        raise DataError(
            "the inputs are of different kinds",
            problems=[f"{value or 'not stated'}: {_some(label for label, other in said.items() if other == value)}"
                      for value in sorted(kinds)],
            hint="make a store of one kind",
        )  # fmt: skip
    stated = next(iter(kinds), "")
    notes = []
    if stated and kind is not None and kind != stated:
        raise DataError(f"the inputs say that they are {stated}, not {kind}", hint="leave out --kind")
    if not stated and kind is None:
        notes.append("the inputs do not say what they are; taken as reanalysis (--kind says otherwise)")
    names = [file.name for file in catalogue.files]
    sources = _values(catalogue, ("source", "institution"))
    attribution = _values(catalogue, _THANKS)
    era5 = any(series.version is not None for series in catalogue.series) or any(
        "era5" in name.lower() for name in names
    )
    if era5 and not stated:
        attribution.append(ERA5)
    chosen = stated or kind or "reanalysis"
    titles = _values(catalogue, ("title",))
    made = title or (
        titles[0] if len(titles) == 1 else f"{'ERA5' if era5 and not stated else chosen.capitalize()} data"
    )
    return Described(chosen, made, "; ".join(sources) or _some(names), tuple(attribution), tuple(notes))


def _values(catalogue: Catalogue, names: Iterable[str]) -> list[str]:
    """Global attributes of some names, each text once."""
    found: list[Any] = [attributes[name] for name in names for attributes in catalogue.attributes.values()
                        if name in attributes]  # fmt: skip
    return list(dict.fromkeys(str(value) for value in found))


def _some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    everything = list(names)
    return everything[0] + (f" and {len(everything) - 1} more" if everything[1:] else "")
