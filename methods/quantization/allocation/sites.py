"""How many values each site of a model has, and how many bits they are stored with on average."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.bits import KINDS
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site

IMAGE = "patch_embed.input"
"""The image, which has 8 bits to begin with: no method chooses them, so they are in no mean."""


@torch.no_grad()
def site_sizes(model: QuantizedModel, calibration: Calibration) -> dict[str, int]:
    """Return how many values each site has: a weight all of them, an activation those of one image.

    Args:
        model: the wrapped model; run once, on the first image.
        calibration: the images.

    Returns:
        Site name -> number of values; 0 for an activation that the image does not reach.
    """
    sizes = dict.fromkeys((site.name for site in model.sites()), 0)
    for layer in model.weighted_operations():
        sizes[layer.weight_quantizer.site] = layer.weight.numel()
    activations = [site for site in model.sites() if not site.is_weight]
    with ExitStack() as stack:
        for site in activations:
            watch(stack, site.quantizer, _Counter(site.name, sizes))
        model(calibration.whole()[:1])
    return sizes


class _Counter:
    """Forward pre-hook of one quantizer; a layer that sees several maps of an image adds them up."""

    def __init__(self, name: str, sizes: dict[str, int]) -> None:
        self._name, self._sizes = name, sizes

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._sizes[self._name] += inputs[0].numel()


def mean_bits(model: QuantizedModel, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the bits that a value is stored with, on average over the values of all quantized sites.

    What is in floating point does not count, nor does `IMAGE`.

    Args:
        model: the wrapped model.
        sizes: from `site_sizes`.

    Returns:
        For each of `KINDS` that has a quantized site its mean.
    """
    found = {}
    for kind in KINDS:
        sites = [site for site in model.sites() if kind_of(site) == kind and counts(site)]
        total = sum(sizes[site.name] for site in sites)
        if total:
            stored = sum(sizes[site.name] * site.quantizer.stored_bits for site in sites)
            found[kind] = stored / total
    return found


def kind_of(site: Site) -> str:
    """Return which of `KINDS` a site is of."""
    return KINDS[0] if site.is_weight else KINDS[1]


def counts(site: Site) -> bool:
    """Whether the bits of a site are part of a mean."""
    return not site.quantizer.spec.is_float and site.key != IMAGE
