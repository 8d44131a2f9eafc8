"""The convention of a method in words, as lists and pages print it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_ptq_bench.bench.planning.answers import ask, blamed
from vit_ptq_bench.bench.planning.plan import calibration_images
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
from vit_ptq_bench.bench.report.footnotes import differences
from vit_ptq_bench.errors import UserError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol, equal_table

if TYPE_CHECKING:
    from vit_ptq_bench.methods import Method

EXAMPLE_BITS = "W4A4"


def convention(cls: type[Method], protocol: Protocol) -> tuple[str, str]:
    """Return the number of calibration images of a method, and its convention in words."""
    images = str(calibration_images(cls, protocol))
    bits = BitWidth.parse(EXAMPLE_BITS)
    try:
        with blamed(cls, "create()"):
            method = cls.create()
        table = ask(method, "bit_table", bits, protocol)
        words = list(ask(method, "notes"))
    except UserError as error:
        return images, f"(not available: {error})"
    if cls.fidelity != REFERENCE_FIDELITY:
        words.insert(0, differences(table, equal_table(bits)))
    return images, "; ".join(filter(None, words)) or "the common table"
