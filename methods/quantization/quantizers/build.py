"""From an entry of the bit table to its quantizer."""

from collections.abc import Mapping

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec, role_of
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import find_form

SITES: dict[Domain, tuple[str, str]] = {
    "nonnegative": ("attention", "values from 0 up"),
    "gelu": ("fc2.input", "values from GELU's minimum up"),
}
"""Domain of a form -> the one site whose values lie in it, and the domain in words."""


def require_domains(table: Mapping[str, TensorSpec]) -> None:
    """Refuse a bit table that gives a site a form which cannot stand for the site's values.

    Args:
        table: site key -> spec.

    Raises:
        MethodError: such a form, or one that does not exist; the site is named.
    """
    for key, spec in table.items():
        if spec.is_float:
            continue
        domain = find_form(spec.scheme).domain
        if domain != "real" and role_of(key) != SITES[domain][0]:
            site, words = SITES[domain]
            raise MethodError(
                f"{key}: the form {spec.scheme!r} has {words} only, and this site has others; "
                f"use it at {site!r}, and a form such as 'uniform' here"
            )


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
