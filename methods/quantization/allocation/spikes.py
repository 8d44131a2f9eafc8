"""Sites at which few tokens are far larger than the rest: QFeM's measure."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.allocation.sites import counts
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import require_reached
from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site


@torch.no_grad()
def spike_ratios(model: QuantizedModel, calibration: Calibration) -> dict[str, float]:
    """Return the ratio of the largest token to the middle one at each layer's quantized input.

    ``r = mean over images of max_t a_t / median_t a_t``, ``a_t = max_c |x_tc|`` being the size of token t
    (Yang et al. 2024, "Mitigating quantization errors due to activation spikes", the ratio of QFeM). Of a
    convolution the tokens are the positions; windows of one image are taken together, and rows that are no
    image's own (a detector's proposals) are tokens of one image.

    Args:
        model: the wrapped model; its quantizers are inactive afterwards.
        calibration: the images.

    Returns:
        Site name -> ratio, at least 1, of all layers' inputs that are quantized, but for the image.
    """
    sites = [site for site in model.sites() if _is_input(site)]
    model.activate(weights=False, activations=False)
    ratios: dict[str, float] = {}
    with ExitStack() as stack:
        for site in sites:
            watch(stack, site.quantizer, _Watcher(site, calibration.n_images, ratios))
        model(calibration.whole())
    require_reached((site.name for site in sites), ratios)
    return ratios


def _is_input(site: Site) -> bool:
    layer = isinstance(site.operation, WeightedOperation)
    return layer and not site.is_weight and counts(site)


class _Watcher:
    """Forward pre-hook of a quantizer; of several maps the one of the largest ratio counts."""

    def __init__(self, site: Site, images: int, ratios: dict[str, float]) -> None:
        self._site, self._images, self._ratios = site, images, ratios

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ratio = spike_ratio(inputs[0], self._site.operation.output_axis, self._images)
        self._ratios[self._site.name] = max(ratio, self._ratios.get(self._site.name, 1.0))


def spike_ratio(x: Tensor, axis: int, images: int) -> float:
    """Return r of an activation.

    Args:
        x: float, images (or windows of images) first.
        axis: its channels.
        images: in the batch.
    """
    sizes = x.abs().amax(dim=axis).flatten()
    sizes = sizes.view(images, -1) if sizes.numel() % images == 0 else sizes.view(1, -1)
    middle = sizes.median(dim=1).values.clamp_min(torch.finfo(sizes.dtype).tiny)
    return float((sizes.amax(dim=1) / middle).mean())
