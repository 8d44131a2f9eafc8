"""A bit table with the same mean bits as another, but more where they count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vit_ptq_bench.methods.quantization.allocation.knapsack import Item, best_widths
from vit_ptq_bench.methods.quantization.allocation.sensitivity import (
    WIDTHS,
    Errors,
    sensitivities,
)
from vit_ptq_bench.methods.quantization.allocation.sites import counts, kind_of, site_sizes
from vit_ptq_bench.methods.quantization.bits import KINDS, BitTable, BitWidth, of_one
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Site


def mixed_table(
    model: QuantizedModel,
    calibration: Calibration,
    bits: BitWidth,
    widths: Sequence[int] = WIDTHS,
) -> BitTable:
    """Return the model's bit table with bits shared out among sites by `sensitivities`.

    Weights and activations each keep the mean that the table gives them. Sites that the table gives other
    bits than those of ``bits`` (the image; what authors leave at 8) stay as they are.

    Args:
        model: the wrapped model in the shape in which it will be quantized; unchanged, its quantizers
            inactive.
        calibration: the images.
        bits: the mean stored bits of weights and of activations.
        widths: that a site can get.

    Raises:
        MethodError: NaN or infinite activations or gradients, or all widths are above the mean.
    """
    sizes = site_sizes(model, calibration)
    return shared_out(model, sizes, sensitivities(model, calibration, widths), bits)


def shared_out(
    model: QuantizedModel, sizes: Mapping[str, int], errors: Errors, bits: BitWidth
) -> BitTable:
    """Return the model's bit table with the widths of least summed error (`best_widths`).

    Args:
        model: the wrapped model.
        sizes: values of each site, from `site_sizes`.
        errors: of the sites that take part.
        bits: the mean stored bits of weights and of activations.

    Raises:
        MethodError: as `best_widths`.
    """
    table = model.table
    for kind, mean in zip(KINDS, (bits.weight, bits.activation), strict=True):
        sites = [
            site for site in model.sites() if _takes_part(site, kind, mean) and site.name in errors
        ]
        table = with_widths(table, sites, _widths(sites, sizes, errors, mean))
    return table


def _takes_part(site: Site, kind: str, mean: int) -> bool:
    return kind_of(site) == kind and counts(site) and site.quantizer.spec.bits == mean


def _widths(
    sites: Sequence[Site], sizes: Mapping[str, int], errors: Errors, mean: float
) -> list[int]:
    if not sites:
        return []
    return best_widths([Item(sizes[site.name], errors[site.name]) for site in sites], mean)


def with_widths(table: BitTable, sites: Iterable[Site], widths: Iterable[int]) -> BitTable:
    """Return ``table`` with bits for the sites of single operations."""
    for site, width in zip(sites, widths, strict=True):
        table = table.change(of_one(site.key, site.operation.name), bits=width)
    return table
