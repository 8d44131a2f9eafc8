"""The options of `bench simulate`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import option
from vit_ptq_bench.bench.planning.suite import MAX_IMAGES


@dataclass(frozen=True)
class SimulateOptions:
    """On what a suite is to be run.

    Attributes:
        devices: how many, one run each at a time.
        speed: MODEL=IMAGES_PER_SECOND, in full precision on such a device.
        evaluation_images: of a run whose suite has no limit; None: ImageNet's 50000, COCO's 5000.
        plugin: Python files that register methods or tasks.
    """

    devices: int = option(
        1, "devices, one run each at a time (default: 1)", "N", at_least=1, at_most=100_000
    )
    speed: tuple[str, ...] = option(
        (),
        "full-precision images per second of a model on such a device; the other models' by their "
        "multiply-accumulates (default: as the records' machine)",
        "MODEL=NUMBER",
    )
    evaluation_images: int | None = option(
        None,
        "evaluation images of a suite without a limit (default: 50000, ImageNet's; for detection 5000, "
        "COCO's)",
        "N",
        at_least=1,
        at_most=MAX_IMAGES,
    )
    plugin: tuple[Path, ...] = option(
        (), "Python file that registers methods or tasks; may be repeated", "FILE"
    )

    @property
    def speeds(self) -> dict[str, float]:
        """Images per second by model.

        Raises:
            BenchError: one is not written as a model and a number above 0.
        """
        return dict(_speed(text) for text in self.speed)


def _speed(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"([^=]+)=([0-9.eE+-]+)", text.strip())
    try:
        value = float(found[2]) if found else math.nan
    except ValueError:
        value = math.nan
    if found is None or not (0 < value < math.inf):
        raise BenchError(
            f"--speed {text!r}: write it as MODEL=IMAGES_PER_SECOND, like vit_small=900"
        )
    return found[1].strip(), value
