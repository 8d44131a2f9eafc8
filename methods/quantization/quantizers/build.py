"""From an entry of the bit table to its quantizer."""

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import find_form


def build_quantizer(spec: TensorSpec, site: str, axis: int | None = None) -> Quantizer:
    """Return the quantizer a spec asks for.

    Args:
        spec: the site's entry in the bit table.
        site: name of the site, for messages.
        axis: dimension with one scale per entry if the granularity is ``channel``, ``projection`` or
            ``head``.

    Raises:
        MethodError: no form is registered under the spec's scheme.
    """
    grouped = spec.granularity in ("channel", "projection", "head")
    return find_form(spec.scheme)(spec, site, axis if grouped else None)
