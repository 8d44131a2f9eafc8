"""The base class of reconstruction methods, and its settings."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Family, Fidelity, Method
from vit_ptq_bench.methods.api.parameters import ReparameterizationParameters, bounded, counted
from vit_ptq_bench.methods.quantization.bits import (
    OPERAND_ROLES,
    BitTable,
    BitWidth,
    Protocol,
    equal_table,
)
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity

if TYPE_CHECKING:
    from torch import nn

Profile = Literal["fast", "paper"]


@dataclass(frozen=True)
class ReconstructionParameters(ReparameterizationParameters):
    """Settings of every reconstruction method; those of the base are RepQ-ViT's.

    The defaults are the profile ``fast``, for minutes on two cores (docs/reconstruction.md says how they were
    chosen). The profile ``paper`` has the authors' iterations, batches and rates, for a GPU.

    Attributes:
        profile: ``fast`` or ``paper``; what is set besides it counts more.
        unit: what is reconstructed at once.
        iterations: per unit.
        batch_size: images per iteration.
        learn: ``rounding`` (AdaRound) or ``weights`` (trained through the rounding).
        weight_rate: Adam's learning rate of the roundings or weights.
        step_rate: Adam's learning rate of the activation steps; 0 leaves them as calibrated.
    """

    profile: Profile = "fast"
    unit: UnitGranularity = "block"
    iterations: int = bounded(60, at_least=0)
    batch_size: int = counted(8)
    learn: Literal["rounding", "weights"] = "weights"
    weight_rate: float = bounded(1.5e-4, at_least=0)
    step_rate: float = bounded(4e-5, at_least=0)


PAPER = {"iterations": 20000, "batch_size": 32, "learn": "rounding", "weight_rate": 1e-3}
"""The authors' settings of BRECQ's, QDrop's and PD-Quant's released code."""


class Reconstruction(Method):
    """Base class: a calibration to start from, RepQ-ViT's, then unit by unit reconstruction by `recipe`.

    Units are the patch embedding, each transformer block, each patch merging, and the head, which is trained
    on the KL of the logits. The base that is known to work on vision transformers: affine quantizers
    everywhere, per-channel weights, LayerNorm outputs reparameterized, the scales of attention maps
    searched by the error of attention x value; authors' convention: one scale per head in both
    attention products.
    """

    fidelity: ClassVar[Fidelity] = "reimplementation"
    family: ClassVar[Family] = "reconstruction"
    calibration_images = 1024
    detection_images = 256
    quick = {"iterations": 3}
    profiles = {"paper": PAPER}
    Parameters: ClassVar[type] = ReconstructionParameters

    def notes(self) -> tuple[str, ...]:
        """Return the common words and how long is trained what: results depend on it."""
        settings = self.parameters
        trained = "roundings" if settings.learn == "rounding" else "weights"
        steps = " and activation steps" if settings.step_rate > 0 else ""
        return (
            *super().notes(),
            f"trains {trained}{steps}, {settings.iterations} iterations "
            f"of {settings.batch_size} images per {settings.unit}",
        )

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with one scale per head."""
        return equal_table(bits).change(OPERAND_ROLES, granularity="head")

    @abstractmethod
    def recipe(self) -> parts.Recipe:
        """Return how units are reconstructed."""

    def configured(
        self,
        losses: Sequence[parts.Loss],
        input_mix: float,
        keep: float,
        weighting: parts.Weighting = "first",
    ) -> parts.Recipe:
        """Return a recipe with what the method decides and what the parameters say."""
        settings = self.parameters
        weights: parts.Trainable = (
            parts.Roundings(settings.weight_rate)
            if settings.learn == "rounding"
            else parts.Weights(settings.weight_rate)
        )
        return parts.Recipe(
            losses=losses,
            trainables=(weights, parts.Steps(settings.step_rate)),
            unit=settings.unit,
            iterations=settings.iterations,
            batch_size=settings.batch_size,
            input_mix=input_mix,
            keep=keep,
            weighting=weighting,
        )

    def prepare(
        self, model: parts.QuantizedModel, calibration: parts.Calibration
    ) -> parts.QuantizedModel | None:
        """Change the model before anything is calibrated, if the method does.

        Returns:
            The copy in full precision that gives the targets, where the model no longer can; else None.
        """
        return None

    def closed_form(self) -> parts.ClosedForm | None:
        """Return the closed form to start from (docs/rose.md); None: the method begins with `start`."""
        return None

    def start(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Set every quantizer before anything is reconstructed; RepQ-ViT's calibration unless overridden.

        Behind it the scales of attention maps are searched.
        """
        parts.calibrate_reparameterized(
            model,
            calibration,
            zero_point=self.parameters.zero_point,
            scale=self.parameters.scale,
            progress=progress,
        )

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse too few images, and losses that the units cannot give."""
        self.recipe().check(model.structure, calibration.n_images)
        closed = self.closed_form()
        if closed is not None:
            closed.resolve.check(calibration.n_images)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Calibrate to start from, then reconstruct."""
        closed = self.closed_form()
        teacher: parts.QuantizedModel | None
        if closed is not None:
            teacher = self._solved(model, calibration, closed)
        else:
            teacher = self.prepare(model, calibration)
            few = calibration.first(parts.range_images(model, calibration))
            self.start(model, few)
            model.activate()
            images = few.whole()
            parts.search_maps(model.operations, lambda: model(images))
        self.train(model, calibration, teacher, progress)

    def train(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        teacher: parts.QuantizedModel | None,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Reconstruct by `recipe` what has been calibrated; arguments as in `quantization.reconstruct`."""
        parts.reconstruct(model, calibration, self.recipe(), progress, teacher)

    def _solved(
        self, model: parts.QuantizedModel, calibration: parts.Calibration, closed: parts.ClosedForm
    ) -> parts.QuantizedModel:
        """Start in closed form, weights left open; return what gives the targets."""
        closed = replace(closed, resolve=replace(closed.resolve, keep_open=True))
        parts.transform(model, calibration, closed.transforms)
        teacher = self.prepare(model, calibration) or copy.deepcopy(model)
        parts.solve(model, calibration, closed)
        return teacher


@dataclass(frozen=True)
class FrontierParameters(ReconstructionParameters):
    """Settings of the reconstruction methods published since 2024.

    Attributes:
        start: the calibration to begin with: this project's transforms and weights solved in
            ``closed-form`` (docs/rose.md), both ends of every range by squared error (``searched``), or
            RepQ-ViT's percentiles (``repq``).
        attention: form of the attention map's quantizer, ``uniform``, or ``log`` with the base that its
            product with the values asks for.
        gelu: form of the quantizer behind GELU, ``uniform``, ``shifted-log`` or ``offset-log``.
        affine_rate: Adam's learning rate of LayerNorm's weights and biases and the layers' biases; 0
            leaves them as they are.
        decay: what it costs a weight to leave its start, see `quantization.Weights`.
        holdout: share of the images that units are judged on instead, see `quantization.Recipe`.
        crops: random crops of each image that are trained on besides; classifiers only.
        measured_images: images that a loss is measured on in each unit; 0: all that are trained on.
    """

    start: Literal["closed-form", "searched", "repq"] = "searched"
    attention: Literal["uniform", "log"] = "log"
    gelu: Literal["uniform", "offset-log", "shifted-log"] = "shifted-log"
    affine_rate: float = bounded(0.0, at_least=0)
    decay: float = bounded(0.0, at_least=0)
    holdout: float = bounded(0.0, at_least=0, at_most=0.9)
    crops: int = bounded(0, at_least=0, at_most=64)
    measured_images: int = bounded(64, at_least=0)


FRONTIER_PAPER = PAPER | {"attention": "uniform", "gelu": "uniform", "measured_images": 0}
"""The authors' settings: all uniform, all images."""


@dataclass(frozen=True)
class ReluParameters(FrontierParameters):
    """Settings of methods with MLP reconstruction.

    Attributes:
        relu: replace every GELU by ReLU and fit the MLP to its old output; another operation.
        relu_iterations: gradient steps of each MLP's fit; 0: closed form.
    """

    gelu: Literal["uniform", "offset-log", "shifted-log"] = "uniform"
    relu: bool = True
    relu_iterations: int = bounded(0, at_least=0)


RELU_PAPER = FRONTIER_PAPER | {"relu_iterations": 20000}


class Frontier(Reconstruction):
    """Base class of the reconstruction methods published since 2024: another loss on QDrop's recipe.

    In the profile ``fast`` the attention map and GELU's output have logarithmic grids where the papers' are
    uniform: at three bits a uniform map alone costs more than all that the losses give.
    """

    quick = {"iterations": 2, "batch_size": 4, "measured_images": 4}
    profiles = {"paper": FRONTIER_PAPER}
    Parameters: ClassVar[type] = FrontierParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the table with the forms of the attention map and of GELU's output."""
        table = super().bit_table(bits, protocol)
        table = table.change("attention", scheme=self.parameters.attention)
        return table.change("fc2.input", scheme=self.parameters.gelu)

    def notes(self) -> tuple[str, ...]:
        """Return also what is trained or shown besides."""
        p = self.parameters
        extra = []
        if p.affine_rate > 0:
            extra.append("trains LayerNorm's weights and biases and the layers' biases too")
        if p.holdout > 0:
            extra.append(
                f"a share of {p.holdout:g} of the images judges what is trained on the others"
            )
        if p.crops > 0:
            extra.append(f"trains on {p.crops} random crops of each image too")
        return (*super().notes(), *extra)

    def configured(
        self,
        losses: Sequence[parts.Loss],
        input_mix: float = 0.5,
        keep: float = 0.5,
        weighting: parts.Weighting = "first",
    ) -> parts.Recipe:
        """Return QDrop's recipe with the method's losses and what the parameters add to it."""
        p = self.parameters
        weights: parts.Trainable = (
            parts.Roundings(p.weight_rate)
            if p.learn == "rounding"
            else parts.Weights(p.weight_rate, decay=p.decay)
        )
        affine = (parts.NormAffine(p.affine_rate), parts.Biases(p.affine_rate))
        recipe = super().configured(losses, input_mix, keep, weighting)
        return replace(
            recipe,
            trainables=(
                weights,
                parts.LogScales(p.step_rate),
                parts.Steps(p.step_rate),
                *(affine if p.affine_rate > 0 else ()),
            ),
            holdout=p.holdout,
            crops=p.crops,
            measured_images=p.measured_images,
        )

    def closed_form(self) -> parts.ClosedForm | None:
        """Return the closed form of `rose`, where the parameter `start` asks for it."""
        return parts.ClosedForm() if self.parameters.start == "closed-form" else None

    def start(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Calibrate as the parameter `start` says."""
        if self.parameters.start == "repq":
            super().start(model, calibration, progress)
            return
        parts.calibrate_start(
            model,
            calibration,
            zero_point=self.parameters.zero_point,
            scale=self.parameters.scale,
            progress=progress,
        )


class ReluFrontier(Frontier):
    """Base class of those that replace GELU by ReLU: the operation changes, and their notes say so."""

    profiles = {"paper": RELU_PAPER}
    Parameters = ReluParameters

    def notes(self) -> tuple[str, ...]:
        """Return also that the operation is another one."""
        words = super().notes()
        return (
            (*words, "GELU replaced by ReLU: another operation") if self.parameters.relu else words
        )

    def supports(self, model: nn.Module, table: parts.BitTable) -> str | None:
        """Return also why the model's MLPs cannot be fitted with ReLU, where that is asked for."""
        problem = super().supports(model, table)
        if problem is not None or not self.parameters.relu:
            return problem
        return parts.relu_problem(parts.wrap_model(model, table))

    def prepare(
        self, model: parts.QuantizedModel, calibration: parts.Calibration
    ) -> parts.QuantizedModel | None:
        """Fit the MLPs with ReLU; the original gives the targets."""
        if not self.parameters.relu:
            return None
        teacher = copy.deepcopy(model)
        fit = parts.ReluFit(self.parameters.relu_iterations, self.parameters.batch_size)
        parts.refit_relu(model, calibration, fit)
        return teacher
