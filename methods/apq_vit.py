"""APQ-ViT: block-wise calibration with bottom elimination, and a softmax quantizer that keeps the large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.parameters import bounded, counted
from vit_ptq_bench.methods.api.registry import register_method
from vit_ptq_bench.methods.quantization.bits import (
    FLOAT,
    LINEAR_WEIGHTS,
    OPERAND_ROLES,
    BitTable,
    BitWidth,
    equal_table,
)


@dataclass(frozen=True)
class ApqVitParameters:
    """Settings of `ApqVit`.

    Attributes:
        scope: the score is the error of the whole ``block``'s output (the paper's idea) or of each
            ``module``'s own (what the released port runs).
        eliminate: percent of the smallest errors that do not count, per image and candidate.
        order: ``reverse`` takes a block's operations from the last to the first.
        rounds: alternations.
        draws: label draws averaged in the Fisher gradient.
        batch_size: images per backward pass.
        alpha, beta: smallest and largest factor on the min-max range.
        map_alpha: smallest factor on the range of the attention map.
        steps: candidates per operand, each the same multiple of the one before.
        search: ``coarse-to-fine`` (a small part of the work) or ``exhaustive``.
    """

    scope: Literal["block", "module"] = "block"
    eliminate: float = bounded(10.0, at_least=0, less_than=100)
    order: Literal["reverse", "forward"] = "reverse"
    rounds: int = counted(3)
    draws: int = counted(4)
    batch_size: int = counted(8)
    alpha: float = bounded(0.2, more_than=0)
    map_alpha: float = bounded(1 / 128, more_than=0)
    beta: float = bounded(1.0, more_than=0)
    steps: int = counted(32)
    search: Literal["coarse-to-fine", "exhaustive"] = "coarse-to-fine"


@register_method
class ApqVit(Method):
    """Scales by the disturbance of the block's output; an affine quantizer for the attention map.

    Source: Ding et al., ACM MM 2022 (arXiv 2303.14341). The paper's: bottom-elimination block-wise
    calibration, and Matthew-effect preserving quantization: after softmax an affine quantizer with all levels
    on [0, c max], the largest value kept at c = 1. Forms (threshold, ranges, three rounds) from the released
    port to another framework; the block's score is inferred from abstract and port, which runs module by
    module (``scope = "module"``).
    Convention (authors): affine; one scale per linear weight (qkv: one each for query, key, value), per
    output channel for the patch embedding, whose input stays in floating point; query, key, attention and
    value per head; fc2 input twin uniform; static; head at the same bits; 32 images.
    Deviations: Fisher gradients (the port takes the output itself for its gradient); every operation is
    calibrated (the port leaves many out); blocks are calibrated on full-precision inputs. The port's factors,
    0.7 to 1.1 of the range and 0.9 to 1.2 in attention products, are for 8 bits; ours are logarithmic and
    begin at 0.2, for the map at 1/128: of a map whose largest entry is 1 most entries are below 1/16, and
    four bits at c = 1 would leave nothing of them. As in the port each head (and each of the query's, key's
    and value's weights) has a factor of its own, although a block's score is one number: groups start at
    the least error of their operation's own output and are then searched by the block's in turn; more than
    16 (weights per channel) are moved together. The grid is searched coarse to fine on the images that
    hold 99 % of the squared gradient, a quarter at least, unless ``search = "exhaustive"``.
    """

    name = "apq-vit"
    paper = "Ding et al., APQ-ViT: Towards Accurate PTQ for Vision Transformer, ACM MM 2022"
    fidelity = "reimplementation"
    family = "calibration"
    version = 3
    schemes = {"fc2.input": "twin-gelu"}
    quick = {"rounds": 1, "draws": 1, "steps": 16}
    batch = "batch_size"
    Parameters = ApqVitParameters

    def authors_table(self, bits: BitWidth) -> BitTable:
        """Return the table of the released port."""
        table = equal_table(bits).change(LINEAR_WEIGHTS, granularity="tensor")
        table = table.change("qkv.weight", granularity="projection")
        table = table.change(OPERAND_ROLES, granularity="head")
        return table.change("patch_embed.input", bits=FLOAT)

    def calibrate(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None = None,
    ) -> None:
        """Search block by block, or module by module; what is in no block always module by module."""
        if self.parameters.scope == "module":
            self._by_module(model, model.operations, calibration, progress)
            return
        self._by_block(model, calibration, progress)
        behind = model.structure.behind()
        if behind:
            self._by_module(model, behind, calibration, progress)

    def _by_block(
        self,
        model: parts.QuantizedModel,
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None,
    ) -> None:
        p = self.parameters
        recordings = parts.record_segments(
            model, calibration, parts.fisher_loss, p.draws, p.batch_size
        )
        search = parts.BlockwiseSearch(
            self._grid, p.eliminate, p.rounds, p.order == "reverse", p.search
        )
        segments = model.structure.segments
        for done, segment in enumerate(segments, start=1):
            search.run(segment, recordings.pop(0))
            if progress is not None:
                progress(done, len(segments), segment.name)

    def _by_module(
        self,
        model: parts.QuantizedModel,
        operations: Sequence[parts.QuantOperation],
        calibration: parts.Calibration,
        progress: parts.CalibrationProgress | None,
    ) -> None:
        p = self.parameters
        metric = parts.EliminatedFisherMetric(p.eliminate)
        recordings = parts.record_operations(
            model, calibration, parts.fisher_loss, p.draws, p.batch_size, operations
        )
        for done, (operation, recording) in enumerate(recordings, start=1):
            parts.search_operation(
                operation, recording, metric, self._grid(operation, 0), p.rounds, p.search
            )
            if progress is not None:
                progress(done, len(operations), operation.name)

    def _grid(self, operation: parts.QuantOperation, operand: int) -> parts.Grid:
        """Logarithmic factors, from far below the largest value for the attention map."""
        p = self.parameters
        is_map = operation.role == "context" and operand == 0
        return parts.Grid(p.map_alpha if is_map else p.alpha, p.beta, p.steps, logarithmic=True)
