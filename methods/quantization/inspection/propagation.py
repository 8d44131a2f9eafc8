"""How much a block enlarges or dampens a small error of its input (error propagation, SatNL, ECCVW 2022)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.memory import require_room
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

KINDS = ("block", "merge")
"""Segments that map a residual stream to a residual stream."""


@dataclass(frozen=True)
class SegmentGain:
    """The error propagation gain of one segment.

    Attributes:
        segment: its name in the model.
        kind: ``block`` or ``merge``.
        gain: ``|J e| / |e|`` for a random e: below 1 it dampens errors, above 1 it enlarges them.
    """

    segment: str
    kind: str
    gain: float


def propagation_gains(
    model: QuantizedModel,
    calibration: Calibration,
    progress: CalibrationProgress | None = None,
) -> list[SegmentGain]:
    """Return ``|J e| / |e|`` of every block and patch merging, J its Jacobian at its full-precision input.

    e has independent normal entries, drawn by the calibration's seed, one after the other in execution order;
    both norms go over all entries of all images. The expectation of the square is ``|J|_F^2 / n`` for n
    entries of the input, so a draw over whole images is close to it. J e comes from forward-mode
    differentiation, about two forward passes.

    Args:
        model: the wrapped model, its weights not quantized; its quantizers are switched off.
        calibration: the images, all at once.
        progress: called after each segment.

    Raises:
        MethodError: NaN or infinite activations, weights that are quantized already, or too little memory.
    """
    if any(operation.frozen for operation in model.weighted_operations()):
        raise MethodError("gains are those of the full-precision model; wrap it anew")
    require_room(model, calibration)
    model.activate(weights=False, activations=False)
    segments, generator = model.structure.segments, calibration.generator()
    x, gains = calibration.whole(), []
    for done, segment in enumerate(segments, start=1):
        check_finite(x, f"{segment.name}, its input")
        if segment.kind in KINDS:
            error = torch.randn(x.shape, generator=generator).to(x.device)
            x, moved = _moved(segment.run, x, error)
            gains.append(SegmentGain(segment.name, segment.kind, _norm(moved) / _norm(error)))
        else:
            with torch.no_grad():
                x = segment.run(x)
        if progress is not None:
            progress(done, len(segments))
    return gains


def _moved(run: Callable[[Tensor], Tensor], x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``run(x)`` and J ``error``; the fused kernels of attention have no forward-mode derivative."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(run, (x,), (error,))
    return found[0], found[1]


def _norm(x: Tensor) -> float:
    return math.sqrt(float(x.square().sum(dtype=torch.float64)))
