"""QwT: quantization without tears, a linear layer per block that makes up for the block's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.api.tables import TWIN_SCHEMES, twin_uniform_table
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol, equal_table


@dataclass(frozen=True)
class QwTParameters:
    """Settings of `QwT`.

    Attributes:
        base: the calibration that comes first, with its default settings.
        form: ``layer`` adds a layer to every block (the paper's); ``folded`` changes the weights of the
            block's last layers instead, before they are quantized, and adds no operation.
        ridge: lambda, as a share of the mean variance of the inputs.
        weights: a token's squared error counts ``relative`` to the token's own square, or ``plain``, as the
            paper has it.
        base_images: the first images of the calibration set, on which the base is calibrated.
    """

    base: Literal["repq-vit", "ptq4vit"] = "repq-vit"
    form: Literal["layer", "folded"] = "layer"
    ridge: float = bounded(0.01, at_least=0)
    weights: Literal["relative", "plain"] = "relative"
    base_images: int = counted(32)


@register_method
class QwT(Method):
    """After another calibration, regress each block's error on its input, and add what the regression gives.

    Source: Fu et al., CVPR 2025 (arXiv 2411.13918), from summaries of paper and README: behind each block
    ``y + W x + b``, W and b by ridge regression of the full-precision output less the quantized one on the
    quantized input x, block after block, skipped where R^2 <= 0; the layer has half precision and is not
    quantized; 512 images. Convention (authors): that of the base.
    Ours: squared errors count relative to the token's own square (``weights = "plain"``: the paper's; on
    ViT-Tiny a few tokens are 30 to 50 times as large as the others, and what serves them spoils the class
    token); R^2 is that of a two-fold cross-validation over images, for on the images of the fit it cannot be
    negative; the strength of the ridge, which no text says; the base sees the first 32 images; the form
    ``folded``: with its weight not yet quantized, the projection and fc2 take up, by the same regression on
    their own quantized inputs, what the residual stream behind them lacks.
    """

    name = "qwt"
    paper = "Fu et al., Quantization without Tears, CVPR 2025"
    fidelity = "reimplementation"
    family = "compensation"
    calibration_images = 512
    detection_images = 32
    Parameters = QwTParameters

    def bit_table(self, bits: BitWidth, protocol: Protocol = "equal") -> BitTable:
        """Return the base's table."""
        table = super().bit_table(bits, protocol)
        schemes = TWIN_SCHEMES if self._twin else {"attention": "log-sqrt2"}
        for key, scheme in schemes.items():
            table = table.change(key, scheme=scheme)
        return table

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the base's authors."""
        return twin_uniform_table(bits) if self._twin else equal_table(bits)

    def folds(self) -> bool:
        """Return whether the base folds LayerNorm outputs."""
        return not self._twin

    def notes(self) -> tuple[str, ...]:
        """Return what stands under the table: the base, and what the correction costs."""
        p = self.parameters
        cost = (
            "a layer of half precision per block, extra operations: a class of its own"
            if p.form == "layer"
            else "its corrections folded into weights"
        )
        return (*super().notes(), f"on {p.base}, {cost}")

    def check(self, model: parts.QuantizedModel, calibration: parts.Calibration) -> None:
        """Refuse images of which no half is left to judge corrections."""
        parts.require_halves(calibration.n_images)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Calibrate the base, then correct block after block."""
        p = self.parameters
        few = calibration.first(p.base_images)
        if self._twin:
            parts.search_model(model, few)
        else:
            parts.calibrate_reparameterized(model, few)
        if p.form == "layer":
            parts.correct_blocks(model, calibration, p.ridge, p.weights, progress)
            return
        rule = None if self._twin else parts.best_percentile_rule(parts.PERCENTILES)
        parts.fold_corrections(model, calibration, p.ridge, p.weights, rule, progress)

    @property
    def _twin(self) -> bool:
        return bool(self.parameters.base == "ptq4vit")
