"""The registry of architecture families, and the way from a model to its wrapped copy."""

import copy
import difflib
from importlib.metadata import entry_points

from torch import nn

from vit_ptq_bench.guests import one_line, watched
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable, check_name, of_one
from vit_ptq_bench.methods.quantization.model.activation import require_gelu
from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.build import require_domains
from vit_ptq_bench.registry import Registry

PACKAGE = "vit_ptq_bench.methods.quantization.model.families"

ENTRY_POINTS = "vit_ptq_bench.families"
"""Group in which other packages declare families."""


class FamilyRegistry(Registry):
    """Families by name: the modules of a package, then entry points, then what is registered by hand."""

    def import_from_location(self) -> None:
        """Import the package's modules and load the entry points, once; note what fails in `broken`."""
        if self._discovered:
            return
        super().import_from_location()
        for point in entry_points(group=ENTRY_POINTS):
            try:
                with watched():
                    point.load()
            except Exception as error:  # other people's packages can fail in any way
                self.broken[point.name] = one_line(error)

    def in_order(self) -> list[type[Family]]:
        """Return the families in the order in which they are asked whether they know a model.

        The package's own come first, so that no plug-in changes what is done to a model they know; each
        group goes by name, whatever was imported first.
        """
        families: dict[str, type[Family]] = self.module_dict
        return [families[name] for name in sorted(families, key=self._place)]

    def _place(self, name: str) -> tuple[bool, str]:
        return not self.module_dict[name].__module__.startswith(f"{self._package}."), name


FAMILIES = FamilyRegistry(
    "family",
    PACKAGE,
    (
        "base",
        "joined",
        "mmdet_detector",
        "plain",
        "registry",
        "streams",
        "swin",
        "timm_block",
        "window",
    ),
    MethodError,
)
"""Name -> family class."""


REASONS = {
    "Cait": "it mixes attention maps of heads by layers around the softmax, for which no role stands",
    "Xcit": "it attends over channels and has depthwise convolutions, for which no role stands",
}
"""Transformers of no family, by the name of timm's class, and what is in the way (docs/models.md)."""


def register_family(cls: type[Family]) -> type[Family]:
    """Class decorator: make models of a family quantizable.

    Raises:
        MethodError: the class lacks a ``description``, its ``name`` is not lower-case kebab, or it is taken.
    """
    check_name(getattr(cls, "name", None), f"{cls.__name__}.name")
    description = getattr(cls, "description", "")
    if not isinstance(description, str) or not description:
        raise MethodError(f"{cls.__name__}.description must say which models are supported")
    if not cls.__module__.startswith(f"{PACKAGE}."):
        FAMILIES.import_from_location()  # a name that is taken is the newcomer's mistake
    FAMILIES.add(cls.name, cls)
    return cls


def find_family(model: nn.Module) -> type[Family]:
    """Return the family of a model.

    Raises:
        MethodError: no family knows the architecture; the text names the supported ones, and the families
            that could not be imported.
    """
    families = FAMILIES.in_order()
    for family in families:
        if family.matches(model):
            return family
    supported = "; ".join(family.description for family in families)
    failed = "".join(f"; {name} failed: {error}" for name, error in FAMILIES.broken.items())
    name = type(model).__name__
    why = f": {REASONS[name]}" if name in REASONS else ""
    raise MethodError(f"cannot quantize a {name}{why}. Supported: {supported}{failed}")


def wrap_model(model: nn.Module, table: BitTable) -> QuantizedModel:
    """Return a copy of ``model`` with quantizers (all inactive) at every site of ``table``.

    The original is not touched; with the quantizers inactive the copy computes the same function.

    Raises:
        MethodError: the architecture, or a part of it, is not supported, or the table asks for a quantizer
            form that does not exist, or that cannot stand for the values of its site, or has an entry for an
            operation that the model does not have.
    """
    family = find_family(model)
    require_domains(table)
    duplicate = copy.deepcopy(model).eval().requires_grad_(False)
    structure = family(duplicate, table).wrap()
    wrapped = QuantizedModel(duplicate, table, structure)
    require_gelu(wrapped)
    _require_operations(wrapped)
    return wrapped


def _require_operations(model: QuantizedModel) -> None:
    """Raise `MethodError` if the bit table has an entry for one operation that there is not."""
    places = sorted({of_one(site.key, site.operation.name) for site in model.sites()})
    for entry in model.table.own:
        if entry not in places:
            near = difflib.get_close_matches(entry, places, n=2) or places[:2]
            raise MethodError(
                f"the bit table has an entry {entry!r}, and the model has no such site; it has, for "
                f"example, {' and '.join(near)}"
            )
