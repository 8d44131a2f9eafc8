"""ONNX Runtime's own static quantization, to hold an exported model against."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_ptq_bench.bench.deployment.extras import brought

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""What multiplies a weight or two activations."""


def quantize_static(
    source: Path, out: Path, batches: Sequence[Tensor], operators: Sequence[str] = ()
) -> None:
    """Quantize an ONNX file in full precision to 8 bits, as ONNX Runtime's documentation has it.

    Weights per channel, activations per tensor with the extremes of the calibration images, both unsigned.

    Args:
        source: in full precision.
        out: the file to write.
        batches: calibration images, float32 [b, 3, H, W].
        operators: that are quantized; none: all that have an integer form, which is its default.

    Raises:
        BenchError: onnxruntime is not installed.
    """
    tools = brought("onnx", "onnxruntime.quantization")
    prepared = out.with_name(f".{out.name}.prepared")
    try:
        with _quiet():
            tools.shape_inference.quant_pre_process(
                str(source), str(prepared), skip_symbolic_shape=True
            )
            tools.quantize_static(
                str(prepared),
                str(out),
                _Images(batches),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=list(operators) or None,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QUInt8,
            )
    finally:
        prepared.unlink(missing_ok=True)


class _Images:
    """Calibration images, one call of `get_next` each, as ONNX Runtime asks for them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._images = (batch[i : i + 1] for batch in batches for i in range(len(batch)))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input by name, or None."""
        image = next(self._images, None)
        return None if image is None else {"images": image.numpy()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that the tools print and log whatever they are given."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
