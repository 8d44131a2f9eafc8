"""The registry of methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from vit_ptq_bench.methods.api.method import Family, Fidelity, Method
from vit_ptq_bench.methods.api.parameters import check_parameters
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.registry import Registry
from vit_ptq_bench.values import shown

METHODS = Registry("method", "vit_ptq_bench.methods", ("errors",), MethodError)
"""Name -> method class."""


def register_method(cls: type[Method]) -> type[Method]:
    """Class decorator: add a method to the benchmark under its ``name``.

    Raises:
        MethodError: the class lacks a name, a paper or a method that it must define, or the name is not
            lower-case kebab or taken, or another attribute is not what `Method` says.
    """
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise MethodError(f"a method is a subclass of Method; got {shown(cls)}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise MethodError(
            f"{cls.__name__}.name must be lower-case kebab, like 'repq-vit'; got {shown(name)}"
        )
    paper = getattr(cls, "paper", "")
    if not isinstance(paper, str) or not paper:
        raise MethodError(f"{cls.__name__}.paper must say where the method comes from")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise MethodError(f"{cls.__name__} must define {', '.join(missing)}")
    check_card(cls)
    METHODS.add(name, cls)
    return cls


def check_card(cls: type[Method]) -> None:
    """Refuse attributes that records, tables and the plan could not use.

    Raises:
        MethodError: naming the attribute.
    """
    images, detection = cls.calibration_images, cls.detection_images
    right = {
        "name": (len(cls.name) <= 100, "at most 100 letters"),
        "fidelity": (cls.fidelity in get_args(Fidelity), f"one of {', '.join(get_args(Fidelity))}"),
        "family": (cls.family in get_args(Family), f"one of {', '.join(get_args(Family))}"),
        "version": (type(cls.version) is int, "a whole number"),
        "calibration_images": (type(images) is int and images >= 0, "a whole number, 0 or more"),
        "detection_images": (
            detection is None or (type(detection) is int and detection > 0),
            "a whole number above 0, or None",
        ),
        "schemes": (_is_texts(cls.schemes), "a mapping of sites to names of forms"),
        "note": (isinstance(cls.note, str), "a text"),
        "quick": (isinstance(cls.quick, Mapping), "a mapping"),
        "profiles": (isinstance(cls.profiles, Mapping), "a mapping"),
    }
    for attribute, (holds, words) in right.items():
        if not holds:
            found = shown(getattr(cls, attribute))
            raise MethodError(f"{cls.__name__}.{attribute} must be {words}; got {found}")
    check_parameters(cls.Parameters, cls.__name__)


def _is_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(text, str) for item in value.items() for text in item
    )
