"""Scale reparameterization of LayerNorm outputs (RepQ-ViT)."""

from dataclasses import replace

from torch import Tensor

from vit_ptq_bench.methods.quantization.model.structure import NormLink
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

PERCENTILES = (0.999, 0.9999, 0.99999)


def _foldable(link: NormLink) -> bool:
    """Folding needs a static uniform quantizer between LayerNorm and linear layer."""
    spec = link.reader.input_quantizer.spec
    return not spec.is_float and not spec.dynamic and spec.scheme == "uniform"


def _use_channels(link: NormLink) -> None:
    quantizer = link.reader.input_quantizer
    spec = replace(quantizer.spec, granularity="channel", symmetric=False)
    link.reader.input_quantizer = UniformQuantizer(spec, quantizer.site, axis=-1)


def _tensor_quantizer(
    channels: UniformQuantizer, scale: Tensor, zero_point: Tensor
) -> UniformQuantizer:
    quantizer = UniformQuantizer(replace(channels.spec, granularity="tensor"), channels.site)
    quantizer.set_parameters(scale, zero_point)
    return quantizer
