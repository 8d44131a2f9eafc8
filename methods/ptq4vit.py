"""PTQ4ViT: twin uniform quantization and a Hessian-guided metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.api.tables import TWIN_SCHEMES, twin_uniform_table
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth


@dataclass(frozen=True)
class Ptq4VitParameters:
    """Settings of `Ptq4Vit`.

    Attributes:
        gradient: ``fisher`` draws labels from the model's own prediction; ``reference-noise``
            differentiates the divergence of the prediction from itself, as the released code does: its
            exact gradient is zero, so the result is rounding noise and depends on the machine.
        draws: label draws averaged in the Fisher gradient.
        alpha, beta, steps: the grid of factors on the min-max scale.
        rounds: alternations between both operands.
        batch_size: images per backward pass.
        search: ``coarse-to-fine`` (a small part of the work) or ``exhaustive``.
    """

    gradient: Literal["fisher", "reference-noise"] = "fisher"
    draws: int = counted(4)
    alpha: float = bounded(0.01, more_than=0)
    beta: float = bounded(1.2, more_than=0)
    steps: int = counted(100)
    rounds: int = counted(3)
    batch_size: int = counted(8)
    search: Literal["coarse-to-fine", "exhaustive"] = "coarse-to-fine"


@register_method
class Ptq4Vit(Method):
    """Two ranges for the unbalanced activations; scales by a second-order estimate of the loss.

    Source: Yuan et al., ECCV 2022 (arXiv 2111.12293); algorithm confirmed from the released code.
    Convention (authors): symmetric; one scale per linear weight (qkv: one each for query, key, value),
    per output channel for the patch embedding, whose input stays in floating point; query, key and value
    per head; other activations per tensor; static; head at the same bits; 32 images.
    Deviations: the softmax quantizer is the paper's exclusive form (the released code adds both halves);
    gradients are Fisher gradients (the released ones are rounding noise); all gradients come from the
    same backward passes; the grid is searched coarse to fine on the tokens (of attention products: images)
    that hold 99 % of the squared gradient, a quarter at least, unless ``search = "exhaustive"``.
    ``ptq4vit-released`` undoes the first two.
    """

    name = "ptq4vit"
    paper = "Yuan et al., PTQ4ViT: PTQ for Vision Transformers with Twin Uniform Quantization, ECCV 2022"
    fidelity = "official"
    family = "calibration"
    version = 2
    schemes = TWIN_SCHEMES
    quick = {"draws": 1, "rounds": 1, "steps": 16}
    batch = "batch_size"
    Parameters = Ptq4VitParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the published runs."""
        return twin_uniform_table(bits)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Search each operation on its full-precision inputs, output and output gradient."""
        p = self.parameters
        loss = parts.fisher_loss if p.gradient == "fisher" else parts.self_divergence_loss
        draws = p.draws if p.gradient == "fisher" else 1
        parts.search_model(
            model,
            calibration,
            loss=loss,
            draws=draws,
            batch_size=p.batch_size,
            grid=parts.Grid(p.alpha, p.beta, p.steps),
            rounds=p.rounds,
            mode=p.search,
            progress=progress,
        )


@dataclass(frozen=True)
class ReleasedParameters(Ptq4VitParameters):
    """Settings of `Ptq4VitReleased`."""

    gradient: Literal["fisher", "reference-noise"] = "reference-noise"
    batch_size: int = counted(4)


@register_method
class Ptq4VitReleased(Ptq4Vit):
    """PTQ4ViT as the released code behaves: summed softmax halves, gradients from rounding noise."""

    name = "ptq4vit-released"
    schemes = {"attention": "twin-softmax-summed", "fc2.input": "twin-gelu"}
    Parameters = ReleasedParameters
    note = "released behaviour: summed softmax quantizer, gradient of rounding noise"
