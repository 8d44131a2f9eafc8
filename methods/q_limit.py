"""Q-Limit: BRECQ's reconstruction with QDrop's dropping, on weights of mixed precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.reconstruction import Reconstruction
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (2, 4, 8)
"""Bits that a layer's weight can get, as in BRECQ's mixed precision."""


@register_method
class QLimit(Reconstruction):
    """Share the weights' bits out by what each layer's rounding costs the prediction, then reconstruct.

    Source: Q-Limit (TPAMI 2025), of which only the abstract was readable; its parts are known: BRECQ's search
    of bits (Li et al., ICLR 2021, section 3.4) and QDrop's reconstruction (Wei et al., ICLR 2022).
    Convention: the common table on average; a layer's weight has 2, 4 or 8 bits, activations all have the
    bits of the width; under ``authors`` the weights of first and last layer have 8 bits and one scale per
    head in both attention products. Static; 1024 images (authors).
    Deviations: a layer's cost is its output's squared error weighted by squared gradients, in closed form
    from the full-precision model, not its block's loss after calibration; pairs within a block are not
    looked at; the budget is solved exactly by dynamic programming, not by a genetic search; the base is
    RepQ-ViT's, as for every reconstruction here.
    """

    name = "q-limit"
    paper = "Q-Limit: post-training quantization with BRECQ, QDrop and searched bits, TPAMI 2025"
    version = 2
    fidelity = "inspired"
    note = "weights of 2, 4 and 8 bits, the width on average"

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with one scale per head, first and last weight at eight bits."""
        table = super().authors_table(bits)
        return table.change(("patch_embed.weight", "head.weight"), bits=8)

    def found_table(
        self, model: nn.Module, table: BitTable, calibration: parts.Calibration
    ) -> BitTable:
        """Return ``table`` with the weights' bits shared out."""
        bits = BitWidth(table["fc1.weight"].bits, table["fc1.input"].bits)
        if table["fc1.weight"].is_float:
            return table
        wrapped = parts.wrap_model(model, table)
        rule = parts.best_percentile_rule(parts.PERCENTILES)
        parts.fold_norm_outputs(wrapped, calibration, rule)
        errors = parts.sensitivities(wrapped, calibration, WIDTHS, weights_only=True)
        return parts.shared_out(wrapped, parts.site_sizes(wrapped, calibration), errors, bits)

    def recipe(self) -> parts.Recipe:
        """QDrop's: half of the input and of the inner activations unquantized."""
        return self.configured([parts.BlockError()], input_mix=0.5, keep=0.5)
