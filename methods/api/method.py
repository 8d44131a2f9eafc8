"""The base class of PTQ methods."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_type_hints

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.parameters import NoParameters, ReparameterizationParameters, checked
from vit_ptq_bench.methods.api.words import table_words, transform_words
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import (
    BitTable,
    BitWidth,
    Protocol,
    equal_table,
)
from vit_ptq_bench.methods.quantization.table_changes import (
    SETTING as TABLE,
)
from vit_ptq_bench.methods.quantization.table_changes import changed, check_changes
from vit_ptq_bench.methods.quantization.transforms.names import SETTING, check_transforms

if TYPE_CHECKING:
    from torch import nn

Fidelity = Literal["official", "reimplementation", "inspired", "reference"]

Family = Literal[
    "calibration", "transformation", "compensation", "reconstruction", "other", "reference"
]


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class Method(ABC):
    """A post-training quantization method. Subclass it, decorate with `register_method`.

    Importing a method, creating it and asking for its bit table or its words does not import torch: what
    computes is a part, reached through `vit_ptq_bench.methods.quantization`.

    Attributes:
        name: the paper's own name in lower-case kebab.
        paper: citation.
        fidelity: ``official`` (algorithm confirmed from the authors' source), ``reimplementation``
            (from the paper), ``inspired`` (in its spirit), ``reference`` (no quantization).
        family: ``calibration`` (ranges and scales are searched, weights stay), ``transformation`` (the
            model is first made easier to quantize), ``compensation`` (weights make up for errors, in closed
            form), ``reconstruction`` (weights or roundings are trained), ``other``, or ``reference``; tables
            can be filtered by it.
        version: raise it whenever results change; it is part of a result's identity.
        calibration_images: how many images the authors use; 0 if the method needs none.
        detection_images: how many they use on COCO, if that is another number and known.
        schemes: sites that get another form of quantizer than the uniform one; the method's essence,
            so it holds under every protocol.
        extra_levels: levels beyond those of its bits that a released code's grids have; ``note`` says so.
        note: one sentence about the convention, printed under leaderboards; see `notes`.
        quick: settings with which it runs in seconds on a small model, for the conformance tests.
        profiles: named sets of settings, for methods with a parameter ``profile``: what it names comes
            before the defaults and after what is set by hand.
        batch: the parameter, a number of images, that out of memory may halve while calibrating: the result
            is then that of the smaller batch, and the record says so. None: out of memory ends the run.
        Parameters: frozen dataclass of the settings, each with a default that JSON can hold; see
            `parameters.bounded`.
        transforms: of an instance, what is done to the model before `calibrate`; see `with_transforms`.
        table_changes: of an instance, how its bit table differs from its own; see `with_table`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    fidelity: ClassVar[Fidelity] = "inspired"
    family: ClassVar[Family] = "other"
    version: ClassVar[int] = 1
    calibration_images: ClassVar[int] = 32
    detection_images: ClassVar[int | None] = None
    schemes: ClassVar[Mapping[str, str]] = {}
    extra_levels: ClassVar[int] = 0
    note: ClassVar[str] = ""
    quick: ClassVar[Mapping[str, Any]] = {}
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    batch: ClassVar[str | None] = None
    Parameters: ClassVar[type] = NoParameters

    transforms: tuple[str, ...] = ()
    table_changes: tuple[str, ...] = ()

    def __init__(self, parameters: Any = None) -> None:
        # Any: each method has its own dataclass; `create` checks the types.
        self.parameters = self.Parameters() if parameters is None else parameters

    @classmethod
    def create(cls, settings: Mapping[str, Any] | None = None) -> Self:
        """Return an instance with some parameters changed.

        Raises:
            MethodError: an unknown parameter, or a value of the wrong type or out of bounds; it is named,
                also in `MethodError.parameter`.
        """
        settings = dict(settings or {})
        settings = {**cls.profiles.get(str(settings.get("profile")), {}), **settings}
        hints = _type_hints(cls.Parameters)
        known = {field.name: field.metadata for field in fields(cls.Parameters)}
        for name, value in list(settings.items()):
            if name not in known:
                raise MethodError(
                    f"{cls.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}",
                    parameter=name,
                )
            settings[name] = checked(f"{cls.name}.{name}", value, hints[name], known[name])
        return cls(cls.Parameters(**settings))

    def with_transforms(self, names: Sequence[str]) -> Self:
        """Return this method with transforms in front of it, in the place of its own.

        Args:
            names: of `quantization.TRANSFORMS`, each once; they act in this order.

        Raises:
            MethodError: something else than a list of such names, or the method is the full-precision
                reference.
        """
        transforms = check_transforms(names)
        if transforms and self.fidelity == "reference":
            raise MethodError(
                f"{self.name} is the model as it is, which no transform changes", parameter=SETTING
            )
        other = copy.copy(self)
        other.transforms = transforms
        return other

    def with_table(self, names: Sequence[str]) -> Self:
        """Return this method with changes of its bit table, in the place of those that it had.

        Args:
            names: of `table_changes.CHANGES`, each once.

        Raises:
            MethodError: something else than a list of such names, or the method is the full-precision
                reference.
        """
        changes = check_changes(names)
        if changes and self.fidelity == "reference":
            raise MethodError(f"{self.name} quantizes nothing", parameter=TABLE)
        other = copy.copy(self)
        other.table_changes = changes
        return other

    @property
    def batch_images(self) -> int | None:
        """Images that go through the model at a time, where `batch` names the parameter that says so."""
        return None if self.batch is None else int(getattr(self.parameters, self.batch))

    def with_half_batch(self) -> Self | None:
        """Return this method with half the `batch`, which needs less memory; None where that cannot be."""
        if self.batch is None or self.batch_images is None or self.batch_images < 2:
            return None
        smaller = replace(self.parameters, **{self.batch: self.batch_images // 2})
        return type(self)(smaller).with_transforms(self.transforms).with_table(self.table_changes)

    def planned_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return `bit_table` behind `table_changes`.

        Raises:
            MethodError: the protocol is unknown.
        """
        return changed(self.bit_table(bits, protocol), self.table_changes)

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the bit table under a protocol: the common one, or the authors' own.

        Raises:
            MethodError: the protocol is unknown.
        """
        if protocol not in get_args(Protocol):
            raise MethodError(f"unknown protocol {protocol!r}; use equal or authors")
        table = equal_table(bits) if protocol == "equal" else self.authors_table(bits)
        for key, scheme in self.schemes.items():
            table = table.change(key, scheme=scheme)
        return table

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the authors, uniform everywhere; `schemes` is applied to it."""
        return equal_table(bits)

    def folds(self) -> bool:
        """Whether scales of LayerNorm outputs move into their readers: then channels differ less.

        Asked where bits are shared out, which is before the method has done so.
        """
        return isinstance(self.parameters, ReparameterizationParameters)

    def found_table(
        self, model: nn.Module, table: BitTable, calibration: parts.Calibration
    ) -> BitTable:
        """Return the table that the method runs on: ``table``, unless it chooses bits for itself.

        Args:
            model: a supported architecture in float32, unchanged.
            table: from `planned_table`.
            calibration: images on the device of the model.
        """
        return table

    @classmethod
    def chooses_bits(cls) -> bool:
        """Whether the method has a `found_table` of its own."""
        return cls.found_table is not Method.found_table

    def mixed_table(
        self, model: nn.Module, table: BitTable, bits: BitWidth, calibration: parts.Calibration
    ) -> BitTable:
        """Return ``table``, where ``bits`` is mixed with bits shared out by what each site loses.

        See `quantization.mixed_table`.

        Sensitivities are those of the model behind `transforms`, and behind the fold if the method `folds`.
        A method that chooses bits for itself gets ``table`` as it is.

        Args:
            model: a supported architecture in float32, unchanged.
            table: from `bit_table`.
            bits: the mean of weights and of activations.
            calibration: images on the device of the model.

        Raises:
            MethodError: unsupported model, or unusable activations.
        """
        if not bits.mixed or self.chooses_bits():
            return table
        wrapped = parts.wrap_model(model, table)
        if self.transforms:
            parts.apply_transforms(wrapped, self.transforms, calibration)
        if self.folds():
            rule = parts.best_percentile_rule(parts.PERCENTILES)
            parts.fold_norm_outputs(wrapped, calibration, rule)
        return parts.mixed_table(wrapped, calibration, bits)

    def supports(self, model: nn.Module, table: BitTable) -> str | None:
        """Return why this method, behind its transforms, cannot quantize this model so, or None."""
        try:
            wrapped = parts.wrap_model(model, table)
        except MethodError as error:
            return str(error)
        problems = (parts.transform_problem(name, wrapped) for name in self.transforms)
        return next((problem for problem in problems if problem is not None), None)

    def notes(self) -> tuple[str, ...]:
        """Return what the method says of itself beyond its bit table: `note`, if there is one."""
        return (self.note,) if self.note else ()

    def convention(self, table: BitTable) -> str:
        """Return in words what ``table`` leaves in floating point, what is dynamic; transforms; `notes`."""
        words = (*table_words(table), *transform_words(self.transforms), *self.notes())
        return "; ".join(words)

    def check(  # noqa: B027  (most methods take whatever they get)
        self, model: parts.QuantizedModel, calibration: parts.Calibration
    ) -> None:
        """Refuse images and settings that cannot work together, before any work is done.

        Args:
            model: as `calibrate` gets it, but for `transforms`.
            calibration: the images.

        Raises:
            MethodError: what is wrong, and what to do.
        """

    @abstractmethod
    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set every quantizer of ``model``; they arrive inactive, the weights as trained or transformed.

        What it leaves active or inactive does not matter: all are switched on afterwards.
        """

    def quantize(
        self,
        model: nn.Module,
        table: BitTable,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
        *,
        keep_unrounded: bool = False,
    ) -> parts.QuantizedModel:
        """Return a quantized copy of ``model``; the original is untouched.

        Args:
            model: a supported architecture in float32.
            table: from `bit_table`.
            calibration: images on the device of the model.
            progress: called with (finished, all) steps of the calibration.
            keep_unrounded: keep what each weight was just before it was rounded, to inspect what that lost.

        Raises:
            MethodError: unsupported model, unusable activations, or an uncalibrated site.
        """
        reason = self.supports(model, table)
        if reason is not None:
            raise MethodError(reason)
        quantized = parts.wrap_model(model, self.found_table(model, table, calibration))
        for layer in quantized.weighted_operations():
            layer.keeps_unrounded = keep_unrounded
        self.check(quantized, calibration)
        if self.transforms:
            parts.apply_transforms(quantized, self.transforms, calibration)
        self.calibrate(quantized, calibration, progress)
        quantized.freeze()
        return quantized
