"""Search of the scales of attention maps by the error of attention x value."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.recording import Recording
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.search.candidates import Candidates, Grid, best_index
from vit_ptq_bench.methods.quantization.search.scores import SquaredErrorMetric, likeness

SQUARED_ERROR = SquaredErrorMetric()

MAP_GRID = Grid(alpha=1 / 128, beta=129 / 128, steps=128)
"""1/128 to the whole of the extreme values: most of an attention map is far below its largest entry."""


@torch.no_grad()
def search_maps(operations: Iterable[QuantOperation], run: Callable[[], Any]) -> None:
    """Set the scales of attention maps by the squared error of attention x value, while ``run`` runs.

    Only where the map has a static uniform quantizer: its values lie so far apart that a percentile of them,
    or their own squared error, says little of what the product needs; the logarithmic form has no such
    trouble. Searching the values and the product of queries and keys too gave no more (ViT-Tiny, W4A4).

    Args:
        operations: among which the products are.
        run: sends images through them; products that come later see what was chosen for earlier ones.
    """
    with ExitStack() as stack:
        for operation in operations:
            if isinstance(operation, QuantMatMul) and has_uniform_map(operation):
                stack.callback(operation.register_forward_pre_hook(_search_map).remove)
        run()


def has_uniform_map(product: QuantMatMul) -> bool:
    """Whether a product's first operand is an attention map with a static uniform quantizer."""
    spec = product.first_quantizer.spec
    uniform = spec.scheme == "uniform" and not spec.is_float and not spec.dynamic
    return product.role == "context" and uniform


def _search_map(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Choose once, with the values quantized as they are calibrated, if they are."""
    assert isinstance(product, QuantMatMul)
    recording = Recording(inputs, product.compute(*inputs), None)
    values = product.second_quantizer(inputs[1])
    own = Candidates(product.first_quantizer, inputs[0], MAP_GRID)

    def score(index: Tensor) -> Tensor:
        own.apply(index)
        estimate = product.compute(own.quantizer.fake_quantize(inputs[0]), values)
        return likeness(SQUARED_ERROR, recording, estimate, own.groups, product.output_axis)

    own.choose(best_index(score, own.count, own.groups, "coarse-to-fine", values.device))
