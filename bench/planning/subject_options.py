"""Options of commands that load one model of one task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_ptq_bench.bench.planning.options import option
from vit_ptq_bench.bench.planning.suite import MAX_IMAGES

IMAGES = {"at_least": 1, "at_most": MAX_IMAGES}


@dataclass(frozen=True)
class SubjectOptions:
    """What is quantized, and how it is drawn.

    Attributes:
        bits: bit width, like ``W4A4``.
        scope: what of a detector is quantized; None: the task's usual one.
        seed: of the draw of images and of every random generator.
        device: name of a torch device.
        plugin: Python files that register methods or tasks.
    """

    bits: str = option("W4A4", "bit width (default: W4A4)", "BITS")
    scope: str | None = option(None, "of a detector: backbone (default) or full", "NAME")
    seed: int = option(0, "draw of the images (default: 0)", "N", at_least=0, at_most=2**32 - 1)
    device: str = option("cpu", "cpu (default) or cuda:0", "NAME")
    plugin: tuple[Path, ...] = option(
        (), "Python file that registers methods or tasks; may be repeated", "FILE"
    )
