"""An inspection of a model as tables and data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_ptq_bench.methods.quantization.inspection.propagation import SegmentGain
    from vit_ptq_bench.methods.quantization.inspection.sites import SiteFigures

SITE_COLUMNS: Mapping[str, str] = {
    "mismatch": "largest over mean range of the channels",
    "precision": "mean range of the channels over that of the tensor",
    "sqnr": "signal to quantization noise, dB",
    "clipped": "entries beyond the grid, %",
    "asymmetry": "|mean| over standard deviation",
}
"""Figures of a site -> what they are."""

COLUMNS: Mapping[str, str] = {**SITE_COLUMNS, "gain": "error propagation |J e| / |e| of a block"}
"""All figures that can be chosen."""

DIGITS = {"mismatch": 2, "precision": 3, "sqnr": 1, "clipped": 2, "asymmetry": 3, "gain": 3}


@dataclass(frozen=True)
class Inspection:
    """What was measured of one model.

    Attributes:
        task, model: names.
        bits: bit width, like ``W4A4``.
        method: whose quantized model it was; None: the full-precision one, with min-max ranges.
        protocol: ``equal`` or ``authors``.
        scope: what of a detector; None for a classifier.
        images, seed: how many calibration images, and their draw.
        sites: figures of every site in execution order.
        segments: gains of every block and patch merging of the full-precision model.
    """

    task: str
    model: str
    bits: str
    method: str | None
    protocol: str
    scope: str | None
    images: int
    seed: int
    sites: Sequence[SiteFigures]
    segments: Sequence[SegmentGain]

    @property
    def title(self) -> tuple[str, str]:
        """What was inspected, and on what, a line each."""
        of = f"as {self.method} quantizes it" if self.method else "min-max ranges, each site alone"
        scope = f", {self.scope}" if self.scope else ""
        table = f"bit table {self.protocol}"
        return (
            f"{self.model} ({self.task}{scope}) at {self.bits}, {of}",
            f"{self.images} calibration images of draw {self.seed}; {table}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; what does not exist, or is infinite, is null."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own["sites"] = [_finite(asdict(one)) for one in self.sites]
        own["segments"] = [asdict(one) for one in self.segments]
        return own


def site_rows(
    found: Inspection, columns: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of the table of sites, with those of ``columns`` that are figures of sites."""
    chosen = [name for name in columns if name in SITE_COLUMNS]
    rows = [
        (one.site, *(_shown(name, getattr(one, name)) for name in chosen)) for one in found.sites
    ]
    return ("site", *chosen), rows


def gain_rows(found: Inspection) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of the table of blocks."""
    rows: list[tuple[str, ...]] = [
        (one.segment, one.kind, _shown("gain", one.gain)) for one in found.segments
    ]
    return ("block", "kind", "gain"), rows


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    scaled = 100 * value if name == "clipped" else value
    return f"{scaled:.{DIGITS[name]}f}"


def csv_text(found: Inspection) -> str:
    """Return one table of sites and blocks as CSV, in full precision; what does not exist is empty.

    Shares are from 0 to 1, not in percent.
    """
    text = io.StringIO()
    names = ("name", "kind", "bits", *COLUMNS)
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    for site in found.sites:
        own = {name: getattr(site, name) for name in SITE_COLUMNS}
        writer.writerow({"name": site.site, "kind": site.key, "bits": site.bits, **_written(own)})
    for one in found.segments:
        writer.writerow({"name": one.segment, "kind": one.kind, "gain": one.gain})
    return text.getvalue()


def _written(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if value is None else value for name, value in own.items()}


def _finite(own: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in own.items()
    }
