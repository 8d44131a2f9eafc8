"""The registry of quantizer forms, by the names that bit tables call them."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import Scheme, check_name
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.registry import Registry

PACKAGE = "vit_ptq_bench.methods.quantization.quantizers"

FORMS = Registry(
    "quantizer form", PACKAGE, ("arithmetic", "base", "build", "registry"), MethodError
)
"""Scheme -> class of the quantizer."""

Form = TypeVar("Form", bound=type[Quantizer])


def register_form(*schemes: Scheme) -> Callable[[Form], Form]:
    """Return a class decorator: make a quantizer available to bit tables under one or more names.

    A form with several names tells them apart by ``spec.scheme``.

    Raises:
        MethodError: no name is given, one is not lower-case kebab, or one is taken.
    """
    if not schemes:
        raise MethodError("a quantizer form needs a name: @register_form('my-form')")
    for scheme in schemes:
        check_name(scheme, "the name of a quantizer form")

    def register(form: Form) -> Form:
        if not form.__module__.startswith(f"{PACKAGE}."):
            FORMS.import_from_location()  # a name that is taken is the newcomer's mistake
        for scheme in schemes:
            FORMS.add(scheme, form)
        return form

    return register


def find_form(scheme: Scheme) -> type[Quantizer]:
    """Return the class of a form.

    Raises:
        MethodError: no form has that name; the text has those that exist, and the modules of forms that
            could not be imported.
    """
    forms: dict[str, type[Quantizer]] = FORMS.module_dict
    if scheme in forms:
        return forms[scheme]
    near = get_close_matches(scheme, forms, n=1)
    hint = f" (do you mean {near[0]!r}?)" if near else ""
    failed = "".join(f"; {name} failed: {error}" for name, error in FORMS.broken.items())
    raise MethodError(f"unknown scheme {scheme!r}{hint}; known: {', '.join(sorted(forms))}{failed}")
