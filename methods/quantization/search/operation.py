"""Operation-wise search: operand scales chosen from a grid by the error of the operation's own output.

For one operation the scales of its two operands are searched in turn: for each candidate the operand
is quantized, the operation is recomputed with the other operand as it is quantized now, and the output
is compared with the full-precision one.
"""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.gradients import OutputLoss, fisher_loss
from vit_ptq_bench.methods.quantization.calibration.recording import Recording, record_operations
from vit_ptq_bench.methods.quantization.model.layers import QuantMatMul, QuantOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.search.candidates import (
    Candidates,
    Grid,
    SearchMode,
    best_index,
)
from vit_ptq_bench.methods.quantization.search.scores import (
    CosineMetric,
    DirectScore,
    FisherMetric,
    GramCosine,
    Metric,
    Operand,
    Score,
    by_row,
    heaviest,
    rows_of,
)

FEW_TOKENS = 256
"""Tokens of a layer up to which all are looked at; the search costs little there."""


@torch.no_grad()
def search_operation(
    operation: QuantOperation,
    recording: Recording,
    metric: Metric,
    grid: Grid,
    rounds: int,
    mode: SearchMode = "coarse-to-fine",
) -> None:
    """Set the quantizers of both operands by alternating search.

    Weights come before inputs, the first operand of an attention product before the second; the split
    after softmax is searched with the other operand in full precision. An operand is searched again only if
    the other has changed since, and rounds end once nothing does. Operands left in floating point, or
    dynamic, are not searched. Unless ``mode`` is ``exhaustive`` a weighted metric looks at the rows that
    hold nearly all of the squared gradient (`heaviest`).
    """
    tensors = operation.operands(recording.inputs)
    quantizers = list(operation.quantizers().values())
    candidates = {
        i: Candidates(quantizers[i], tensors[i], grid)
        for i in range(2)
        if not quantizers[i].spec.is_float and not quantizers[i].spec.dynamic
    }
    if metric.by_token:
        recording = by_row(operation, recording)
    if metric.weighted and mode != "exhaustive" and not _few_tokens(recording):
        assert recording.squared_gradient is not None
        recording = rows_of(recording, heaviest(recording.squared_gradient))
    order = [
        i for i in ((0, 1) if isinstance(operation, QuantMatMul) else (1, 0)) if i in candidates
    ]
    seen: dict[int, Tensor | None] = {}
    for _ in range(rounds):
        changes = [
            _search_operand(operation, recording, metric, candidates, i, mode, seen) for i in order
        ]
        if not any(changes):
            return


def search_model(
    model: QuantizedModel,
    calibration: Calibration,
    *,
    loss: OutputLoss = fisher_loss,
    draws: int = 4,
    batch_size: int = 8,
    metric: Metric | None = None,
    grid: Grid | None = None,
    rounds: int = 3,
    mode: SearchMode = "coarse-to-fine",
    progress: CalibrationProgress | None = None,
) -> None:
    """Search every operation on its full-precision inputs, output and output gradient: PTQ4ViT's calibration.

    Args:
        model: the wrapped model.
        calibration: the images.
        loss, draws, batch_size: of the gradients, as in `recording.record_operations`.
        metric: of outputs; None: the squared error weighted by the squared gradient.
        grid: of factors; None: PTQ4ViT's.
        rounds, mode: as in `search_operation`.
        progress: called after each operation.

    Raises:
        MethodError: NaN or infinite activations, or an operation on which the loss does not depend.
    """
    metric, grid = metric or FisherMetric(), grid or Grid(0.01, 1.2, 100)
    recordings = record_operations(model, calibration, loss, draws, batch_size)
    for done, (operation, recording) in enumerate(recordings, start=1):
        search_operation(operation, recording, metric, grid, rounds, mode)
        if progress is not None:
            progress(done, len(model.operations))


def _few_tokens(recording: Recording) -> bool:
    """Whether the rows are tokens and so few that none can be spared: a head sees one per image."""
    return recording.output.dim() == 2 and len(recording.output) <= FEW_TOKENS


def _search_operand(
    operation: QuantOperation,
    recording: Recording,
    metric: Metric,
    candidates: dict[int, Candidates],
    which: int,
    mode: SearchMode,
    seen: dict[int, Tensor | None],
) -> bool:
    """Search one operand; ``seen`` is what the other was when each was searched last."""
    own, other = candidates[which], candidates.get(1 - which)
    fixed = operation.operands(recording.inputs)[1 - which]
    now = None
    if other is not None and not own.by_split:
        now = other.chosen
        fixed = other.quantizer.fake_quantize(fixed)
    if which in seen and _same(seen[which], now):
        return False
    seen[which] = now
    score = _make_score(operation, recording, metric, own, which, fixed)
    # The whole grid again in later rounds: the first round saw the other operand at its full range, and what
    # was best then may be far from what is best now.
    return own.choose(best_index(score, own.count, own.groups, mode, fixed.device))


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _make_score(
    operation: QuantOperation,
    recording: Recording,
    metric: Metric,
    own: Candidates,
    which: int,
    fixed: Tensor,
) -> Score:
    """Second moments where they serve and cost less than the outputs they stand for."""
    searched = Operand(operation, recording, own.apply, own.quantizer, which, fixed, own.groups)
    if isinstance(metric, CosineMetric) and GramCosine.pays(searched):
        return GramCosine(searched)
    return DirectScore(metric, searched)
