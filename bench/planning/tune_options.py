"""The options of `bench tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit_ptq_bench.bench.planning.options import option
from vit_ptq_bench.bench.planning.subject_options import IMAGES, SubjectOptions

By = Literal["prediction", "local"]


@dataclass(frozen=True)
class TuneOptions(SubjectOptions):
    """How a method's settings are searched.

    Attributes:
        trials: configurations to try, together with those that the folder has.
        by: what is compared: the prediction, or the sites' own errors.
        calibration_sizes: numbers of calibration images to choose from.
        held_out: calibration images that judge, behind the largest of the sizes.
        parameters: search these, of the method or ``table`` and ``mixed``, alone; empty: all.
        output: folder of trials and suite; None: one below ``output``.
    """

    trials: int = option(
        24,
        "configurations to try, those tried before included (default: 24)",
        "N",
        at_least=1,
        at_most=10_000,
    )
    by: By = option(
        "prediction",
        "what is compared on the images held out: the prediction with full precision's (default), or the "
        "sum of every site's SQNR",
    )
    calibration_sizes: tuple[int, ...] = option(
        (8, 16, 32),
        "numbers of calibration images to choose from (default: 8,16,32)",
        "LIST",
        **IMAGES,
    )
    held_out: int = option(
        32, "calibration images that judge, others than those (default: 32)", "N", **IMAGES
    )
    parameters: tuple[str, ...] = option(
        (),
        "search these parameters only, `table` and `mixed` among them (default: all choices and switches but "
        "profile)",
        "LIST",
    )
    output: Path | None = option(
        None, "trials and suite (default: output/tune-METHOD-MODEL-BITS)", "DIR"
    )
