"""The transformer block as timm's families have it: norm1, attn, norm2, mlp."""

from types import NoneType
from typing import Any

from timm.layers import GluMlp, Mlp, SwiGLU
from torch import nn

from vit_ptq_bench.methods.quantization.model.attention import QuantSelfAttention
from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.joined import JoinedSwiGLU
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.structure import AttentionLink, Padding, ValueLink


def replace_block(
    family: Family,
    block: Any,
    name: str,
    attention: QuantSelfAttention,
    padding: Padding | None = None,
) -> None:
    """Replace the layers of a block in execution order and note what can be folded into what.

    Args:
        family: adapter of the model.
        block: has ``norm1``, ``attn``, ``norm2`` and ``mlp`` with ``fc1`` and ``fc2``.
        name: its dotted name.
        attention: takes the place of ``block.attn``.
        padding: the padded tokens between ``norm1`` and the attention, if there can be any.

    Raises:
        MethodError: the block's MLP is neither the plain nor a gated one.
    """
    block.mlp = _known_mlp(family, block.mlp, f"{name}.mlp")
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
    keys_normed, context_normed = _has_norm(attention, "k_norm"), _has_norm(attention, "norm")
    if not context_normed:
        structure.value_links.append(ValueLink(qkv, attention.context, proj))
    structure.attention_links.append(
        AttentionLink(
            f"{name}.attn",
            attention.num_heads,
            qkv,
            proj,
            keys_normed,
            context_normed,
            keys_rotated=bool(getattr(attention, "keys_rotated", False)),
        )
    )


def _known_mlp(family: Family, mlp: nn.Module, name: str) -> nn.Module:
    """The MLP with layers ``fc1`` and ``fc2``, whatever it is gated by."""
    if type(mlp) is SwiGLU:
        return JoinedSwiGLU(mlp)
    if type(mlp) is not GluMlp:
        family.require(mlp, Mlp, name)
    return mlp


def _has_norm(attention: QuantSelfAttention, name: str) -> bool:
    """Whether a norm stands there; window attention has none, nor a place for one."""
    return not isinstance(getattr(attention, name, None), NoneType | nn.Identity)


def note_block(stream: StreamNotes, block: Any, name: str) -> None:
    """Note in ``stream`` what a replaced block reads and writes."""
    padding = getattr(block, "padding", None)
    stream.read_by(block.norm1, block.attn.qkv, name=f"{name}.norm1", padding=padding)
    stream.written_by(block.attn.proj, _scaling(block, "ls1", "gamma_1"))
    stream.read_by(block.norm2, block.mlp.fc1, name=f"{name}.norm2")
    stream.written_by(block.mlp.fc2, _scaling(block, "ls2", "gamma_2"))


def _scaling(block: Any, *names: str) -> Any:
    """The LayerScale of half a block, a module or a parameter; None: there is none."""
    return next(
        (found for name in names if (found := getattr(block, name, None)) is not None), None
    )
