"""IGQ-ViT: channels and tokens are put into groups with a grid each, anew for every input."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded
from vit_ptq_bench.methods.api.registry import register_method

GROUPED = ("qkv.input", "proj.input", "fc1.input", "fc2.input", "reduction.input")
"""Inputs of linear layers; that of the classifier is one token, of which each value would be a channel."""


@dataclass(frozen=True)
class IgqParameters:
    """Settings of `IgqViT`.

    Attributes:
        groups: most groups of a tensor.
    """

    groups: int = bounded(8, at_least=1, at_most=64)


@register_method
class IgqViT(Method):
    """Each input's channels are split into groups of similar range at run time; each group has a static grid.

    Source: Moon et al., CVPR 2024 (arXiv 2404.00928), its abstract: channels of activation maps, and tokens
    of attention maps, are put into groups dynamically for each instance, so that those of a group have
    similar statistics. Ours: a channel's statistics are its smallest and largest value, the groups are found
    by k-means, at most the same number for every layer. Left out: the number of groups per layer under a
    limit of bit operations, of which the abstract gives no procedure. The grouping is dynamic: a class of
    quantizers of its own, whatever the convention. Queries, keys, values and the image are as in the common
    table.
    """

    name = "igq-vit"
    paper = "Moon et al., Instance-Aware Group Quantization for Vision Transformers, CVPR 2024"
    note = "groups are assigned at run time, for each image (in a Swin for each window): dynamic"
    fidelity = "inspired"
    family = "calibration"
    schemes = {
        **dict.fromkeys(GROUPED, "instance-channel-groups"),
        "attention": "instance-token-groups",
    }
    Parameters = IgqParameters

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Weights by two searched ends, then activations behind them in one pass."""
        rule = parts.group_rule(self.parameters.groups, parts.two_ended_rule())
        parts.calibrate_weights(model, rule)
        model.activate(weights=True, activations=False)
        parts.calibrate_activations(model, calibration, rule, sequential=True, progress=progress)
