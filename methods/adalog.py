"""AdaLog: logarithmic quantizers of adaptive base, and a progressive search of two numbers at once."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import OPERAND_ROLES, BitTable, BitWidth, equal_table


@dataclass(frozen=True)
class AdaLogParameters:
    """Settings of `AdaLog`.

    Attributes:
        candidates: pairs of scale and zero point, or of base and scale, tried at first.
        kept: of them, around which finer scales are tried.
        steps: how many times the scales become finer.
        rounds: alternations between an operation's two operands by the error of its output; 0: every
            quantizer is set by its own error, attention maps by that of attention x value.
    """

    candidates: int = counted(128, at_least=16)
    kept: int = counted(16)
    steps: int = bounded(2, at_least=0, at_most=10)
    rounds: int = bounded(1, at_least=0, at_most=100)


@register_method
class AdaLog(Method):
    """Logarithmic grids with a searched base behind softmax and GELU; affine grids by a search of pairs.

    Source: Wu et al., ECCV 2024 (arXiv 2407.12951). Attention maps and fc2's inputs, shifted by GELU's
    minimum, get levels ``s 2^(-i q/37)``, all else affine ones. Fast progressive combining search: 128 pairs
    of two numbers, the best 16 kept, finer scales around each; by an operand's own squared error first, then
    by that of the operation's output, weights and inputs in turns. LayerNorm outputs are calibrated per
    channel, and their scales folded into LayerNorm and reader before anything else is searched (RepQ-ViT).
    Convention (authors): the common table (8-bit image, head at the activation bits), operands of attention
    per head; 32 images, full-precision inputs. Without the authors' retraining. Of attention maps the base
    and the largest level are searched per head, where the released code has one base a layer and level 1.
    Deviations: the last of 2^b codes stands for zero (theirs has a value more); roots are kept in one byte;
    a map is judged by attention x value alone; the operand that is searched by the output first is not
    searched by its own error before; of 128 candidates 16 get their whole output error, the rest only its
    part without correlations of columns, both from second moments; of activations on 256 tokens, of attention
    products on about 12 rows of 16 images; every fourth of the bases; entries of 20 and more behind GELU do
    not count in their own error; two refinements and one round (released: five and three).
    """

    name = "adalog"
    paper = "Wu et al., AdaLog: PTQ for Vision Transformers with Adaptive Logarithm Quantizer, ECCV 2024"
    version = 2
    fidelity = "reimplementation"
    family = "calibration"
    schemes = {"attention": "adalog", "fc2.input": "shifted-adalog"}
    quick = {"candidates": 16, "kept": 2, "steps": 0, "rounds": 1}
    Parameters = AdaLogParameters

    def folds(self) -> bool:
        """Return that LayerNorm outputs are folded."""
        return True

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the common table with a scale per head at the operands of attention."""
        return equal_table(bits).change(OPERAND_ROLES, granularity="head")

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Fold the channels' scales of LayerNorm outputs, then search operation by operation."""
        p = self.parameters
        progression = parts.Progression(p.candidates, p.kept, steps=p.steps)
        parts.fold_norm_outputs(model, calibration, parts.progressive_rule(progression))
        recordings = parts.record_operations(model, calibration)
        for done, (operation, recording) in enumerate(recordings, start=1):
            parts.search_progressively(operation, recording, progression, p.rounds)
            if progress is not None:
                progress(done, len(model.operations), operation.name)
