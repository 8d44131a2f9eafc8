"""Search of the tangent grids of attention maps by the error of attention x value."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.quantizers.tangent import TangentQuantizer
from vit_ptq_bench.methods.quantization.search.attention_maps import choose_levels

ANGLES = (0.5, 1.0, 1.2, 1.35, 1.45, 1.5, 1.53, 1.55)
"""Angles that are tried; a right angle has 1.5708."""

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Largest levels that are tried, as shares of the largest entry."""

IMAGES = 8
"""Images, or windows, that are looked at."""


@torch.no_grad()
def search_tangent_maps(operations: Iterable[QuantOperation], run: Callable[[], Any]) -> None:
    """Set angle and largest level of tangent maps by the error of attention x value, while ``run`` runs.

    Args:
        operations: among which the products are; those without a tangent map are left alone.
        run: sends images through them; products that come later see what was chosen for earlier ones.
    """
    with ExitStack() as stack:
        for operation in operations:
            if isinstance(operation, QuantMatMul) and _has_tangent(operation):
                stack.callback(operation.register_forward_pre_hook(_search).remove)
        run()


def _has_tangent(product: QuantMatMul) -> bool:
    quantizer = product.first_quantizer
    return isinstance(quantizer, TangentQuantizer) and not quantizer.spec.is_float


def _search(product: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(product, QuantMatMul)
    quantizer = product.first_quantizer
    assert isinstance(quantizer, TangentQuantizer)
    choose_levels(product, quantizer, inputs, IMAGES, ANGLES, SHARES)
