"""The grids of all activations at once, each by the search that its form and site ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.codebook_search import codebook_rule
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.offset_search import gelu_rule
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, calibrate_activations
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.calibration.range_search import two_ended_rule
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.codebook import Codebook
from vit_ptq_bench.methods.quantization.quantizers.log_grid import LogGridQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.search.attention_maps import (
    has_codebook_map,
    has_log_map,
    search_maps,
)

MAP_IMAGES = 16
"""Images that attention maps are searched on; logarithmic ones look at fewer of them."""


@torch.no_grad()
def calibrate_grids(
    model: QuantizedModel, calibration: Calibration, plain: RangeRule | None = None
) -> None:
    """Set the grid of every activation from what the model gives in full precision.

    Attention maps by the error of attention x value (`search_maps`), codebooks and an offset logarithmic grid
    behind GELU by their own squared error, all else with both ends of the range searched. Searching again on
    the quantized prefix brought nothing, nor did looking at the class token alone in the last block
    (ViT-Tiny).

    Args:
        model: the wrapped model; its activations' quantizers are left active, its weights' inactive.
        calibration: the images, shown as one batch.
        plain: sets the range of every uniform grid, attention maps' too, instead of the searches; logarithmic
            grids have no other range than the one that is searched with their base.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    two_ended, behind_gelu = two_ended_rule(), gelu_rule()

    def rule(site: Site, x: Tensor) -> None:
        if plain is not None and isinstance(site.quantizer, UniformQuantizer):
            plain(site, x)
        elif site.key == "attention":
            minmax_rule(site, x)  # what `search_maps` leaves alone has no other search
        elif isinstance(site.quantizer, LogGridQuantizer):
            behind_gelu(site, x)
        elif isinstance(site.quantizer, Codebook):
            codebook_rule(site, x)
        else:
            two_ended(site, x)

    model.activate(weights=False, activations=False)
    calibrate_activations(model, calibration, rule)
    images = calibration.first(MAP_IMAGES).whole()
    products = [op for op in model.operations if isinstance(op, QuantMatMul)]
    searched = [
        product
        for product in products
        if plain is None or has_log_map(product) or has_codebook_map(product)
    ]
    search_maps(searched, lambda: model(images))
    model.activate(weights=False, activations=True)
