"""The contract of a method, check by check; each raises `Broken` with what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from vit_ptq_bench.bench.contract.codes import Levels, most_levels
from vit_ptq_bench.bench.contract.held import held_per_image, seen_per_image
from vit_ptq_bench.bench.contract.subject import Broken, NotApplicable, Subject
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
from vit_ptq_bench.methods.api.method import Family, Fidelity
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol, of_one
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

WIDTHS = ("W2A2", "W4A8", "W4A32")

SINGLE = {of_one("fc1.weight", "blocks.1.mlp.fc1"): 5, of_one("qkv.input", "blocks.0.attn.qkv"): 6}
"""Bits of single operations, as mixed precision gives them, in a model that has three elsewhere."""

CLOSE = 0.15
"""Relative error of the outputs at 8 bits."""

CLOSE_BY_MAP = {
    "log2": 0.45,
    "log-sqrt2": 0.25,
    "log-sqrt2-plus-zero": 0.25,
    "log-int-softmax": 0.45,
    "shift-uniform-log2": 0.45,
}
"""Of attention maps on a fixed base: at any number of bits off by up to 19 % (base sqrt 2), or a third."""


@dataclass(frozen=True)
class Check:
    """One clause of the contract.

    Attributes:
        name: in kebab, for tests.
        says: what holds, as a sentence.
        advice: what to do where it does not.
        on: the models that it is tried on; see `Subject.model`.
        look: raises `Broken` or `NotApplicable`.
    """

    name: str
    says: str
    advice: str
    on: tuple[str, ...]
    look: Callable[[Subject], None]


def declares_itself(subject: Subject) -> None:
    """Card and docstring."""
    cls = subject.cls
    if not cls.__doc__ or not cls.__doc__.strip():
        raise Broken("the class has no docstring of its own")
    if cls.fidelity not in get_args(Fidelity) or cls.family not in get_args(Family):
        raise Broken(f"fidelity is {cls.fidelity!r}, family {cls.family!r}")
    if cls.version < 1 or cls.calibration_images < 0:
        raise Broken(f"version {cls.version}, {cls.calibration_images} calibration images")


@torch.no_grad()
def keeps_full_precision(subject: Subject) -> None:
    """With 32 bits everywhere outputs are the model's."""
    images = subject.images
    difference = (subject.quantized("W32A32")(images) - subject.model(images)).abs().max()
    if not float(difference) <= 1e-4:
        raise Broken(f"at W32A32 an output is off by {float(difference):.2g}")


@torch.no_grad()
def is_close_at_8_bits(subject: Subject) -> None:
    """Under both protocols on one family, under the common table on the others."""
    expected = subject.model(subject.images)
    protocols = get_args(Protocol) if subject.on == "vit" else ("equal",)
    for protocol in protocols:
        table = subject.method.bit_table(BitWidth.parse("W8A8"), protocol)
        if table["attention"].scheme == "twin-softmax-summed":
            continue  # the released code's sum of two grids is not close at any width
        quantized = subject.quantized("W8A8", protocol)
        error = float((quantized(subject.images) - expected).norm() / expected.norm())
        limit = CLOSE_BY_MAP.get(quantized.table["attention"].scheme, CLOSE)
        if not error < limit:
            raise Broken(
                f"at W8A8, {protocol}, the outputs are off by {error:.0%}; {limit:.0%} are allowed"
            )


@torch.no_grad()
def respects_bits(subject: Subject) -> None:
    """No site has more levels than its bits give, single operations' own too, and outputs are finite."""
    quantized = {bits: subject.quantized(bits) for bits in WIDTHS}
    quantized["W3A3 with single operations of 5 and 6 bits"] = _with_single(subject)
    for bits, model in quantized.items():
        outputs, found = most_levels(model, subject.images)
        if not bool(torch.isfinite(outputs).all()):
            raise Broken(f"at {bits} outputs are NaN or infinite")
        _require_levels(subject, found, bits)


def _with_single(subject: Subject) -> QuantizedModel:
    """The model at W3A3 but for `SINGLE`; unless the method shares out bits itself, they have to be there."""
    table = subject.method.bit_table(BitWidth.parse("W3A3"))
    if subject.cls.fidelity == REFERENCE_FIDELITY:
        return subject.quantized("W3A3")
    for key, bits in SINGLE.items():
        table = table.change(key, bits=bits)
    quantized = subject.method.quantize(subject.model, table, subject.calibration)
    given = {key: quantized.table[key].bits for key in SINGLE if key in quantized.table}
    if given != SINGLE and not subject.cls.chooses_bits():
        raise Broken(f"of the bits of single operations, {SINGLE}, the quantized model has {given}")
    return quantized


@torch.no_grad()
def is_decided_by_its_seed(subject: Subject) -> None:
    """Twice the same, whatever the state of torch's generator; the model stays as it was."""
    first = subject.quantized("W4A4")(subject.images)
    torch.manual_seed(99)
    if not torch.equal(first, subject.fresh("W4A4")(subject.images)):
        raise Broken("a second run with the same seed gives other outputs")
    untouched, model = Subject(subject.cls, subject.on).model, subject.model
    before, after = untouched.state_dict(), model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    kinds = [type(module) for module in untouched.modules()]
    if changed or kinds != [type(module) for module in model.modules()]:
        raise Broken(f"the original model was changed: {changed[:3] or 'its modules'}")


@torch.no_grad()
def loses_more_at_fewer_bits(subject: Subject) -> None:
    """W8A8, W4A4, W2A2."""
    if subject.cls.fidelity == REFERENCE_FIDELITY:
        raise NotApplicable("has no bits")
    expected = subject.model(subject.images)
    errors = [
        float((subject.quantized(bits)(subject.images) - expected).square().mean())
        for bits in ("W8A8", "W4A4", "W2A2")
    ]
    if errors != sorted(errors):
        raise Broken("errors at W8A8, W4A4, W2A2: " + ", ".join(f"{error:.3g}" for error in errors))


def names_what_is_not_finite(subject: Subject) -> None:
    """NaN in images or weights ends in a `MethodError` that says where."""
    if not subject.cls.calibration_images:
        raise NotApplicable("looks at no image")
    images = subject.images.clone()
    images[3, 0, 0, 0] = float("nan")
    _must_name(subject, subject.model, Calibration([images]), "patch_embed")
    model = subject.copied_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = float("inf")  # type: ignore[index, union-attr]
    _must_name(subject, model, subject.calibration, "blocks.1.mlp.fc1")


def _must_name(subject: Subject, model: nn.Module, calibration: Calibration, site: str) -> None:
    table = subject.method.bit_table(BitWidth(4, 4))
    try:
        subject.method.quantize(model, table, calibration)
    except MethodError as error:
        if site not in str(error):
            raise Broken(f"NaN at {site}: the error does not name it: {error}") from error
    else:
        raise Broken(f"NaN at {site} went unnoticed")


def tells_its_progress(subject: Subject) -> None:
    """Steps go up and end at their total."""
    if subject.cls.fidelity == REFERENCE_FIDELITY:
        raise NotApplicable("calibrates nothing")
    seen = subject.watched.steps
    if not seen:
        raise Broken("`progress` was never called")
    if seen[-1][0] != seen[-1][1] or seen != sorted(seen):
        raise Broken(f"progress went to {seen[-1][0]} of {seen[-1][1]}")


def opens_nothing(subject: Subject) -> None:
    """Calibration images are all it sees: no file with labels, pictures or weights is opened."""
    found = subject.watched.opened
    if found:
        raise Broken(f"opened {', '.join(found[:3])} while it calibrated")


def keeps_little(subject: Subject) -> None:
    """What is held between passes grows by less than all activations of the further images."""
    held, seen = held_per_image(subject), seen_per_image(subject)
    if held > seen:
        raise Broken(
            f"holds {held / 1000:.0f} kB per image between passes; the activations of all sites are "
            f"{seen / 1000:.0f} kB"
        )


def refuses_what_it_cannot_do(subject: Subject) -> None:
    """Unsupported architectures and unknown parameters are told in words."""
    table = subject.method.bit_table(BitWidth(4, 4))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    if subject.method.supports(other, table) is None:
        raise Broken("`supports` accepts a plain convolutional network")
    for attempt in (
        lambda: subject.method.quantize(other, table, subject.calibration),
        lambda: subject.cls.create({"alhpa": 1}),
    ):
        try:
            attempt()
        except MethodError:
            continue
        raise Broken("an unsupported model or an unknown parameter is taken")


@torch.no_grad()
def quantizes_the_family(subject: Subject) -> None:
    """At W4A4 outputs are finite and few levels are used."""
    outputs, found = most_levels(subject.quantized("W4A4"), subject.images)
    if not all(bool(torch.isfinite(one).all()) for one in _tensors(outputs)):
        raise Broken("outputs are NaN or infinite at W4A4")
    _require_levels(subject, found, "W4A4")


def _require_levels(subject: Subject, found: Levels, bits: str) -> None:
    for site, (levels, allowed) in found.items():
        if levels > allowed + subject.cls.extra_levels:
            raise Broken(f"at {bits} {site} has {levels} levels; its bits give {allowed}")


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


CHECKS = (
    Check(
        "declares-itself",
        "the class says what it is",
        "give the class a docstring (source, convention, deviations) and set name, paper, fidelity, family "
        "and version",
        ("vit",),
        declares_itself,
    ),
    Check(
        "keeps-full-precision",
        "32 bits change nothing",
        "leave sites in floating point (`site.quantizer.spec.is_float`) as they are, and change weights "
        "only by what the function keeps",
        ("vit", "deit-distilled", "swin"),
        keeps_full_precision,
    ),
    Check(
        "is-close-at-8-bits",
        "8 bits stay close to full precision",
        "look at the ranges: at 8 bits clipping is most of an error; a bias that is folded twice or a scale "
        "on the wrong axis shows here first",
        ("vit", "deit-distilled", "swin"),
        is_close_at_8_bits,
    ),
    Check(
        "respects-bits",
        "no site has more levels than its bits",
        "set quantizers by `set_range` or their buffers and let them quantize; do not replace them or their "
        "outputs",
        ("vit",),
        respects_bits,
    ),
    Check(
        "is-decided-by-its-seed",
        "one seed, one result; the model is untouched",
        "draw from `calibration.generator()`, iterate over lists and not sets, and work on the model that "
        "`calibrate` is given",
        ("vit",),
        is_decided_by_its_seed,
    ),
    Check(
        "loses-more-at-fewer-bits",
        "fewer bits lose more",
        "if W2A2 is nearer than W4A4, ranges of the wider grid are wrong",
        ("vit",),
        loses_more_at_fewer_bits,
    ),
    Check(
        "names-what-is-not-finite",
        "NaN is an error that names the site",
        "calibrate with the parts of `methods.quantization`, which check; else raise MethodError yourself",
        ("vit",),
        names_what_is_not_finite,
    ),
    Check(
        "tells-its-progress",
        "progress ends at its total",
        "call `progress(done, total)` once per step, also after the last",
        ("vit",),
        tells_its_progress,
    ),
    Check(
        "opens-nothing",
        "sees its calibration images and nothing else",
        "take images from `calibration` alone: a method that reads labels or evaluation images is no PTQ",
        ("vit",),
        opens_nothing,
    ),
    Check(
        "keeps-little",
        "memory does not grow with all activations",
        "work layer by layer; what must be kept goes through `Recording` or the engine's caches, which go to "
        "disk beyond BENCH_CACHE_GB",
        ("deep-vit",),
        keeps_little,
    ),
    Check(
        "refuses-what-it-cannot-do",
        "refuses other architectures and unknown parameters",
        "leave `supports` and `create` as they are, or raise MethodError in words",
        ("vit",),
        refuses_what_it_cannot_do,
    ),
    Check(
        "quantizes-every-family",
        "runs on DeiT, Swin and a detector",
        "go over `model.sites()` and `model.structure`, which all families have, not over a ViT's modules",
        ("deit-distilled", "swin", "mask_rcnn_swin_mini"),
        quantizes_the_family,
    ),
)
"""All clauses, the cheapest first."""
