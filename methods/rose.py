"""ROSE: rotate, set ranges, re-solve; closed-form PTQ of this project."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import added, bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.api.tables import with_forms
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol

MOST_VIEWS = 100
"""Of each image: all of them are held in memory."""


@dataclass(frozen=True)
class RoseParameters:
    """Settings of `Rose`; each switches one of its parts.

    Attributes:
        rotate_residual: rotate the residual streams.
        shift_norms: centre LayerNorm outputs per channel and level their ranges.
        rotate_heads: rotate queries with keys, and values with the projection, per head.
        equalise_heads: mix value channels per head so that all carry equal power.
        attention: form of the attention map's quantizer.
        gelu: form of the quantizer behind GELU.
        levels: of all else, weights and activations: 2^b of an 8-bit grid in a ``codebook``, or ``uniform``.
            The picture that enters the model is uniform, and so is all at eight bits.
        weights: they are solved again (``resolve``), only rounded column by column (``columnwise``), or go
            to the ``nearest`` code; the bias makes up for the mean error in all three.
        solved: with ``resolve``, whose weights are solved: of layers that write the residual stream
            (``writers``), or of ``all``; the others are rounded column by column.
        target: what layers that write the residual stream aim at: the full-precision ``stream`` behind them,
            or their own full-precision output.
        token_weights: in layers that write the residual stream, tokens count by one over their squared norm.
        ridge: of the least squares, as a share of the mean diagonal; None: chosen for each layer, with the
            share of the solution that is taken, by cross-validation over images.
        folds: of the images, for the cross-validation.
        ranges: of activations on uniform grids: both ends ``searched``, and attention maps by the error of
            attention x value; RepQ-ViT's best ``percentile``; the ``stable`` range of folds of the images; or
            the ``chunked-percentile`` of chunks of tokens. A logarithmic grid's is found with its base.
        correction: ``folded``: in layers that write the residual stream, QwT's regression of what it lacks is
            put into the weight before anything else is done to it.
        correction_ridge: of that regression.
        profile: ``closed-form`` or ``train``; what is set besides it counts more.
        iterations: of the training behind the closed form; 0: none.
        trained_share: of the images, on which nothing but the training is done; 0: all images are solved on,
            and trained on with random ``views`` of each, for of the images as they are the model remembers
            too much to learn from them.
        batch_size: images per iteration.
        affine_rate: Adam's learning rate of LayerNorm's weights and biases and the layers' biases.
        scale_rate: that of the logarithms of the weights' scales, the codes held; 0: they stay.
        views: of each image, where no images are kept apart for the training.
    """

    rotate_residual: bool = True
    shift_norms: bool = True
    rotate_heads: bool = True
    equalise_heads: bool = True
    attention: Literal["codebook-float", "log", "log-sqrt2", "uniform"] = "codebook-float"
    gelu: Literal["codebook-float", "offset-log", "shifted-log", "twin-gelu", "uniform"] = (
        "codebook-float"
    )
    levels: Literal["codebook", "uniform"] = "codebook"
    weights: Literal["resolve", "columnwise", "nearest"] = "resolve"
    solved: Literal["writers", "all"] = "writers"
    target: Literal["stream", "layer"] = "stream"
    token_weights: bool = True
    ridge: float | None = bounded(2.0, at_least=0)
    folds: int = counted(4, at_least=2)
    ranges: Literal["searched", "percentile", "stable", "chunked-percentile"] = "searched"
    correction: Literal["none", "folded"] = "none"
    correction_ridge: float = bounded(0.01, at_least=0)
    profile: Literal["closed-form", "train"] = "closed-form"
    iterations: int = bounded(0, at_least=0)
    trained_share: float = bounded(0.5, at_least=0, at_most=0.9)
    batch_size: int = counted(16)
    affine_rate: float = bounded(3e-4, at_least=0)
    scale_rate: float = added(0.0, at_least=0)
    views: int = added(1, at_least=0, at_most=MOST_VIEWS)


TRAIN = {"iterations": 60, "trained_share": 0.0}
"""Profile for some hundred images (docs/rose.md)."""


@register_method
class Rose(Method):
    """Transforms that cost nothing, grids by what they do to products, weights solved for what is left.

    Source: this project (docs/rose.md says how it works and what failed). Nothing is trained but in the
    profile ``train``.

    1. Function-preserving transforms: the residual stream rotated by an orthogonal matrix that fixes the
       all-ones vector, so that LayerNorm stays as it is; LayerNorm outputs centred and levelled per channel;
       queries and keys rotated per head, value channels mixed to equal power.
    2. Levels from the full-precision model: each tensor has a codebook of 2^b numbers of an 8-bit type, found
       exactly by squared error; attention maps' by that of attention x value. At eight bits uniform grids
       with both ends searched, and logarithmic ones for attention maps and behind GELU.
    3. Layer by layer in order, with two streams: in layers that write the residual stream a ridge regression
       moves the weight towards the full-precision stream minus what the quantized one already carries,
       tokens weighted by one over their squared norm (and a class token that the head reads alone by five
       behind the last attention). Then GPTQ in all layers, and the bias takes the mean error.
    4. In the profile ``train`` LayerNorms and biases are then trained end to end, on the penultimate feature
       and the prediction of the images and of random views of them, codes and grids held.

    Convention: the common table but for the form of levels, static, no extra operation; a product is of
    8-bit numbers, which tables of 2^b bytes make of the codes. A transform that a model has no structure for
    is left out.
    """

    name = "rose"
    version = 3
    paper = "this project: rotate, set ranges, re-solve"
    fidelity = "official"
    family = "compensation"
    quick = {"folds": 2}
    profiles = {"train": TRAIN}
    Parameters = RoseParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the common table with the forms of the parameters."""
        table = super().bit_table(bits, protocol)
        p = self.parameters
        return with_forms(table, p.attention, p.gelu, p.levels)

    def folds(self) -> bool:
        """Return that LayerNorm outputs are folded."""
        return True

    def notes(self) -> tuple[str, ...]:
        """Return also what is trained, if anything is."""
        p = self.parameters
        if not p.iterations:
            return super().notes()
        what = (
            "LayerNorms, biases and scales of weights" if p.scale_rate else "LayerNorms and biases"
        )
        share = f"a share of {p.trained_share:g} of the images"
        trained = (
            f"trains {what}, {p.iterations} iterations of {p.batch_size} images, "
            f"on {share if p.trained_share else 'random views too'}"
        )
        return (*super().notes(), trained)

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse fewer images than folds, than a correction or than the training needs."""
        solved = self._solved_images(calibration.n_images)
        self._settings().resolve.check(solved)
        correction = self._correction()
        if correction is not None:
            correction.check(solved)
        if self.parameters.iterations:
            trained = calibration.n_images - (solved if self.parameters.trained_share else 0)
            self._recipe().check(model.structure, trained)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Transform, set the grids, solve layer by layer; then train, if that is asked for."""
        settings = self._settings()
        if not self.parameters.iterations:
            parts.calibrate_closed_form(model, calibration, settings, progress)
            return
        images = self._solved_images(calibration.n_images)
        solved = calibration.first(images)
        parts.transform(model, solved, settings.transforms)
        teacher = copy.deepcopy(model)
        parts.solve(model, solved, settings)
        model.activate()
        trained = calibration.behind(images) if self.parameters.trained_share else calibration
        parts.reconstruct(model, trained, self._recipe(), progress, teacher)

    def _solved_images(self, images: int) -> int:
        """How many of so many images the closed form looks at."""
        p = self.parameters
        return images - round(images * p.trained_share) if p.iterations else images

    def _recipe(self) -> parts.Recipe:
        """The whole model as one unit, nothing mixed or dropped: what is trained has few numbers."""
        p = self.parameters
        affine = (parts.NormAffine(p.affine_rate), parts.Biases(p.affine_rate))
        return parts.Recipe(
            trainables=(*affine, parts.CodedScales(p.scale_rate)) if p.scale_rate else affine,
            unit="model",
            iterations=p.iterations,
            batch_size=p.batch_size,
            input_mix=1.0,
            keep=1.0,
            crops=0 if p.trained_share else p.views,
        )

    def _correction(self) -> parts.FoldedCorrection | None:
        p = self.parameters
        return parts.FoldedCorrection(p.correction_ridge) if p.correction == "folded" else None

    def _settings(self) -> parts.ClosedForm:
        p = self.parameters
        switches = {
            "rotate-residual": p.rotate_residual,
            "shift-norms": p.shift_norms,
            "rotate-heads": p.rotate_heads,
            "equalise-heads": p.equalise_heads,
        }
        return parts.ClosedForm(
            transforms=[name for name, wanted in switches.items() if wanted],
            resolve=parts.Resolve(
                None if p.ridge is None else parts.Strength(p.ridge),
                folds=p.folds,
                columnwise=p.weights != "nearest",
                solved=p.solved if p.weights == "resolve" else "none",
            ),
            target=p.target,
            weights=parts.TokenWeights(inverse_power=p.token_weights),
            ranges=p.ranges,
            before=self._correction(),
        )


@dataclass(frozen=True)
class RoseUniformParameters(RoseParameters):
    """Settings of `RoseUniform`."""

    attention: Literal["codebook-float", "log", "log-sqrt2", "uniform"] = "uniform"
    gelu: Literal["codebook-float", "offset-log", "shifted-log", "twin-gelu", "uniform"] = "uniform"
    levels: Literal["codebook", "uniform"] = "uniform"


@register_method
class RoseUniform(Rose):
    """ROSE on uniform grids alone, so that nobody takes the gain of logarithmic grids for that of the rest.

    Attention maps are affine, their scale chosen by the error of attention x value; GELU's output is affine
    with both ends searched. All else is `Rose`.
    """

    name = "rose-uniform"
    version = 2
    Parameters = RoseUniformParameters
