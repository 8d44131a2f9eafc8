"""Architecture families: which modules of a model are quantized, and in which role."""

import copy

from torch import nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.mmdet_swin import MMDetSwin
from vit_ptq_bench.methods.quantization.model.families.timm_swin import TimmSwin
from vit_ptq_bench.methods.quantization.model.families.timm_vit import TimmViT
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

FAMILIES: tuple[type[Family], ...] = (TimmViT, TimmSwin, MMDetSwin)


def find_family(model: nn.Module) -> type[Family]:
    """Return the family of a model.

    Raises:
        MethodError: no family knows the architecture; the text names the supported ones.
    """
    for family in FAMILIES:
        if family.matches(model):
            return family
    supported = "; ".join(family.description for family in FAMILIES)
    raise MethodError(f"cannot quantize a {type(model).__name__}. Supported: {supported}")


def wrap_model(model: nn.Module, table: BitTable) -> QuantizedModel:
    """Return a copy of ``model`` with quantizers (all inactive) at every site of ``table``.

    The original is not touched; with the quantizers inactive the copy computes the same function.

    Raises:
        MethodError: the architecture, or a part of it, is not supported.
    """
    family = find_family(model)
    duplicate = copy.deepcopy(model).eval().requires_grad_(False)
    structure = family(duplicate, table).wrap()
    return QuantizedModel(duplicate, table, structure)
