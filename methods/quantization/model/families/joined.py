"""Linear layers that read one tensor, joined to one layer with one quantizer for what they read."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SwiGLU
from torch import Tensor, nn


class JoinedSwiGLU(nn.Module):
    """`timm.layers.SwiGLU` whose gate and value come from one layer, as in `timm.layers.GluMlp`.

    Attributes:
        fc1: [.., C] -> [.., 2 * hidden]; the gate's outputs first, then the values'.
        fc2: [.., hidden] -> [.., C].
    """

    def __init__(self, original: SwiGLU) -> None:
        super().__init__()
        self.fc1 = joined((original.fc1_g, original.fc1_x))
        self.act, self.drop1, self.norm = original.act, original.drop1, original.norm
        self.fc2, self.drop2 = original.fc2, original.drop2

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP's output for ``x`` [..., C], of the same shape."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        hidden = self.norm(self.drop1(self.act(gate) * value))
        output: Tensor = self.drop2(self.fc2(hidden))
        return output


def joined_qkv(attention: Any) -> nn.Linear:
    """Return queries, keys and values of an attention as one layer, [C] -> [3 * heads * head_dim].

    Args:
        attention: has ``qkv``, with its own bias or with ``q_bias``, ``k_bias`` and ``v_bias`` beside it
            (BEiT, SwinV2, EVA), or three layers ``q_proj``, ``k_proj`` and ``v_proj`` (EVA-02).
    """
    qkv: nn.Linear | None = attention.qkv
    if qkv is None:
        return joined((attention.q_proj, attention.k_proj, attention.v_proj))
    if getattr(attention, "q_bias", None) is None:
        return qkv
    biases = (attention.q_bias, attention.k_bias, attention.v_bias)
    return _linear(qkv.weight, torch.cat([bias.detach() for bias in biases]))


def joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return one layer that gives the outputs of ``layers`` one after the other; no bias counts as zero."""
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([_bias(layer) for layer in layers])
    return _linear(torch.cat([layer.weight.detach() for layer in layers]), bias)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):  # nothing to initialise: the weights are there
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
