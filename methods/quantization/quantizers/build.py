"""The quantizer that a bit table asks for."""

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.logarithmic import (
    LogIntSoftmaxQuantizer,
    LogQuantizer,
)
from vit_ptq_bench.methods.quantization.quantizers.twin import (
    TwinGeluQuantizer,
    TwinSoftmaxQuantizer,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)

_FORMS: dict[str, type[Quantizer]] = {
    "uniform": UniformQuantizer,
    "dual-uniform": DualUniformQuantizer,
    "power-of-two-factor": UniformQuantizer,
    "log2": LogQuantizer,
    "log-sqrt2": LogQuantizer,
    "log-sqrt2-plus-zero": LogQuantizer,
    "log-int-softmax": LogIntSoftmaxQuantizer,
    "twin-softmax": TwinSoftmaxQuantizer,
    "twin-softmax-summed": TwinSoftmaxQuantizer,
    "twin-gelu": TwinGeluQuantizer,
}


def build_quantizer(spec: TensorSpec, site: str, axis: int | None = None) -> Quantizer:
    """Return the quantizer a spec asks for.

    Args:
        spec: the site's entry in the bit table.
        site: name of the site, for messages.
        axis: dimension with one scale per entry if the granularity is ``channel`` or ``head``.
    """
    grouped = spec.granularity in ("channel", "projection", "head")
    return _FORMS[spec.scheme](spec, site, axis if grouped else None)
