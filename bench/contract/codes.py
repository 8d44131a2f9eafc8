"""How many levels a quantized model uses at each of its sites, by counting values."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer

GRIDS = {"dual-uniform": 2, "twin-softmax-summed": 2}
"""Forms that have several grids of their bits at one site, as their papers or released codes do."""

GROUPED = "instance-"
"""Beginning of forms whose channels or tokens choose among as many grids as there are scales."""

Levels = dict[str, tuple[int, int]]
"""Site -> (most values that share a scale, how many its bits give)."""


@torch.no_grad()
def most_levels(model: QuantizedModel, images: Tensor) -> tuple[Any, Levels]:
    """Return the outputs for ``images`` [b, 3, H, W], and the levels that each static site used.

    Sites whose scales are found at run time are left out: each token or group of them has its own.
    """
    found: Levels = {}
    with ExitStack() as stack:
        for site in model.sites():
            spec = site.quantizer.spec
            if spec.is_float or spec.dynamic or site.is_weight:
                continue
            handle = site.quantizer.register_forward_hook(_counting(found, site))
            stack.callback(handle.remove)
        outputs = model(images)
    for operation in model.weighted_operations():
        spec = operation.weight_quantizer.spec
        if operation.frozen and not spec.is_float:
            name = f"{operation.name}.weight"
            found[name] = (_most(operation.weight.flatten(1)), _allowed(operation.weight_quantizer))
    return outputs, found


def _counting(found: Levels, site: Site) -> Any:
    axis = site.quantizer.axis

    def note(module: Any, inputs: Any, output: Tensor) -> None:
        slices = output.reshape(1, -1) if axis is None else output.movedim(axis, 0).flatten(1)
        before = found.get(site.name, (0, 0))[0]
        found[site.name] = (max(before, _most(slices)), _allowed(site.quantizer))

    return note


def _most(slices: Tensor) -> int:
    """The largest number of different values in a row of ``slices`` [n, m]."""
    ordered = slices.sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1


def _allowed(quantizer: Quantizer) -> int:
    scheme, bits = quantizer.spec.scheme, quantizer.spec.bits
    grids = quantizer.scale.numel() if scheme.startswith(GROUPED) else GRIDS.get(scheme, 1)
    return int(grids * 2**bits)
