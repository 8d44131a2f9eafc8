"""Why a figure does not compare with the others at its bits, by the same words for papers and our runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.methods.quantization.bits import TensorSpec

CLASSES = {
    "dynamic": "scales of activations are found at run time, per token or group",
    "mixed-precision": "bits differ from layer to layer",
    "float-layers": "has further layers in floating point",
    "float-format": "quantizes to floating-point formats",
    "labels": "uses labels or trains on them",
    "more-sites": "quantizes LayerNorm and softmax too",
    "fewer-sites": "leaves sites in floating point or at 8 bits",
    "other-images": "calibrates on other images than the data set's, or on none",
    "transformed": "with a rotation in front, the method's own paper has none",
    "granularity": "its source does not say how many scales there are",
    "part": "a part of a method, from an ablation",
}
"""Why a figure does not compare with the others at its bits; what has none of these does."""

MARK = "†"
"""Beside the name of a row that is of such a class."""

GROUPED_AT_RUN_TIME = "instance-"
"""Beginning of the schemes whose channels or tokens are put into groups for each image."""

FLOAT_LAYERS = {"qwt": ("form", "layer")}
"""Methods that add layers in floating point -> the setting and its value, the default, with which they do."""

IMAGE = "patch_embed.input"
"""The site of the images themselves, eight bits as they come: papers leave it as it is and do not say so."""

NORM = "norm.input"
"""The site that the common table does not have."""


def classes_of(record: Record) -> tuple[str, ...]:
    """Return the classes of a run that its neighbours in a table do not share, in the order of `CLASSES`.

    Bits that differ between operations and calibration images of another source have tables of their own,
    whose titles say so.
    """
    if record.fidelity == REFERENCE_FIDELITY:
        return ()
    table = {site: spec for site, spec in record.spec.table.items() if not spec.is_float}
    setting, value = FLOAT_LAYERS.get(record.spec.method.name, ("", None))
    found = {
        "dynamic": any(map(_is_dynamic, table.values())),
        "float-layers": bool(setting)
        and record.spec.method.parameters.get(setting, value) == value,
        "more-sites": NORM in table,
        "fewer-sites": bool(_left_out(record.spec.table, record.common_table or {})),
        "transformed": bool(record.spec.method.transforms),
    }
    return tuple(name for name in CLASSES if found.get(name, False))


def _is_dynamic(spec: TensorSpec) -> bool:
    return spec.dynamic or spec.scheme.startswith(GROUPED_AT_RUN_TIME)


def _left_out(table: Mapping[str, TensorSpec], common: Mapping[str, TensorSpec]) -> list[str]:
    """The sites in floating point that the common table quantizes."""
    return [
        site
        for site, spec in table.items()
        if spec.is_float and site != IMAGE and site in common and not common[site].is_float
    ]


def in_words(classes: Iterable[str]) -> str:
    """Return what classes mean, in their order."""
    known = set(classes)
    return "; ".join(f"`{name}`: {why}" for name, why in CLASSES.items() if name in known)
