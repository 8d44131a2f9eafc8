"""The transformer block as timm's families have it: norm1, attn, norm2, mlp."""

from typing import Any

from timm.layers import Mlp

from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.structure import Padding, ValueLink


def replace_block(
    family: Family,
    block: Any,
    name: str,
    attention: QuantSelfAttention,
    values_movable: bool = True,
    padding: Padding | None = None,
) -> None:
    """Replace the layers of a block in execution order and note what can be folded into what.

    Args:
        family: adapter of the model.
        block: has ``norm1``, ``attn``, ``norm2`` and ``mlp`` with ``fc1`` and ``fc2``.
        name: its dotted name.
        attention: takes the place of ``block.attn``.
        values_movable: whether nothing but the attention product stands between values and projection.
        padding: the padded tokens between ``norm1`` and the attention, if there can be any.

    Raises:
        MethodError: the block's MLP is not the plain one.
    """
    family.require(block.mlp, Mlp, f"{name}.mlp")
    structure = family.structure
    structure.blocks.append(name)
    block.attn = attention
    family.quantize_norm(block, "norm1", f"{name}.norm1")
    qkv = family.replace(attention, "qkv", f"{name}.attn.qkv", "qkv")
    for norm in ("q_norm", "k_norm"):
        family.quantize_norm(attention, norm, f"{name}.attn.{norm}")
    structure.operations += [attention.scores, attention.context]
    family.quantize_norm(attention, "norm", f"{name}.attn.norm")
    proj = family.replace(attention, "proj", f"{name}.attn.proj", "proj")
    family.quantize_norm(block, "norm2", f"{name}.norm2")
    fc1 = family.replace(block.mlp, "fc1", f"{name}.mlp.fc1", "fc1")
    family.quantize_norm(block.mlp, "norm", f"{name}.mlp.norm")
    family.replace(block.mlp, "fc2", f"{name}.mlp.fc2", "fc2")
    family.link(block.norm1, qkv, padding)
    family.link(block.norm2, fc1)
    if values_movable:
        structure.value_links.append(ValueLink(qkv, attention.context, proj))
