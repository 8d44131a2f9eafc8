"""The options of `bench inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.bench.planning.options import option
from vit_ptq_bench.bench.planning.subject_options import IMAGES, SubjectOptions
from vit_ptq_bench.methods.quantization.bits import Protocol


@dataclass(frozen=True)
class InspectOptions(SubjectOptions):
    """What is inspected, and after which method.

    Attributes:
        method: its quantized model is inspected; None: the full-precision model, with min-max ranges.
        protocol: whose bit table.
        calibration_images: how many images are drawn.
        sites: names of the sites that are asked for, with ``*`` and ``?``.
    """

    method: str | None = option(
        None,
        "inspect the model as this method quantizes it (default: each site alone, in the full-precision "
        "model, with min-max ranges)",
        "NAME",
    )
    protocol: Protocol = option("equal", "whose bit table: the common one (default), the authors'")
    calibration_images: int = option(32, "images (default: 32)", "N", **IMAGES)
    sites: str = option("*", "only the sites that match, like '*.fc2.*'", "GLOB")
