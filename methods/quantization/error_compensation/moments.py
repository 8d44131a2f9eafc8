"""Weighted second moments of a layer's rows, image fold by image fold.

All that least squares ask of the calibration tokens: [K, K] and [K, O] however many tokens there were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.error_compensation.two_streams import LayerStreams


@dataclass(frozen=True)
class ResidualMoments:
    """Centred moments of a layer's quantized input x and of what its output lacks, ``e = t - W x``.

    With row weights w, of mean 1 over all rows, and weighted means m over all rows; the sums run over the
    rows of a fold's images. Tensors are float64.

    Attributes:
        second: ``sum w (x - m_x)(x - m_x)'``, [folds, K, K].
        cross: ``sum w (x - m_x)(e - m_e)'``, [folds, K, O].
        residual: ``sum w |e - m_e|^2``, [folds].
        mean_x: m_x, [K].
        mean_e: m_e, [O]; the layer's bias is in it.
    """

    second: Tensor
    cross: Tensor
    residual: Tensor
    mean_x: Tensor
    mean_e: Tensor


class _Sums:
    """Sums of one fold, of values from which a guess of their mean has been taken.

    The guess keeps float32 products exact enough: moments about a far-away point would cancel.
    """

    def __init__(self, columns: int, outputs: int, device: torch.device) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.weight, self.power = zero.clone(), zero.clone()
        self.x, self.e = zero.repeat(columns), zero.repeat(outputs)
        self.second, self.cross = zero.repeat(columns, columns), zero.repeat(columns, outputs)

    def add(self, x: Tensor, e: Tensor, weight: Tensor) -> None:
        weighted = x * weight[:, None]
        self.weight += weight.sum(dtype=torch.float64)
        self.x += weighted.sum(dim=0, dtype=torch.float64)
        self.e += (e * weight[:, None]).sum(dim=0, dtype=torch.float64)
        self.second += (weighted.T @ x).double()
        self.cross += (weighted.T @ e).double()
        self.power += (e.square().sum(dim=1) * weight).sum(dtype=torch.float64)


def residual_moments(streams: LayerStreams, folds: int = 1) -> ResidualMoments:
    """Return the moments of a layer's rows, an image's fold being its number modulo ``folds``."""
    matrix = streams.layer.weight.detach().flatten(1)
    guess: tuple[Tensor, Tensor] | None = None
    sums = [_Sums(matrix.shape[1], len(matrix), matrix.device) for _ in range(folds)]
    rows = 0
    for batch in streams.batches():
        e = batch.target - batch.x @ matrix.T
        guess = guess or (batch.x.mean(dim=0), e.mean(dim=0))
        x, e, rows = batch.x - guess[0], e - guess[1], rows + len(e)
        fold = batch.image % folds
        for number, own in enumerate(sums):
            chosen = fold == number
            own.add(x[chosen], e[chosen], batch.weight[chosen])
    assert guess is not None
    return _centred(sums, guess, rows)


def _centred(sums: list[_Sums], guess: tuple[Tensor, Tensor], rows: int) -> ResidualMoments:
    total = torch.stack([own.weight for own in sums]).sum()
    x = torch.stack([own.x for own in sums]).sum(dim=0) / total
    e = torch.stack([own.e for own in sums]).sum(dim=0) / total
    second, cross, residual = [], [], []
    for own in sums:
        outer = torch.outer(x, own.x)
        second.append(own.second - outer - outer.T + own.weight * torch.outer(x, x))
        cross.append(
            own.cross
            - torch.outer(x, own.e)
            - torch.outer(own.x, e)
            + own.weight * torch.outer(x, e)
        )
        residual.append(own.power - 2 * own.e @ e + own.weight * (e @ e))
    scale = rows / total
    return ResidualMoments(
        second=torch.stack(second) * scale,
        cross=torch.stack(cross) * scale,
        residual=torch.stack(residual) * scale,
        mean_x=x + guess[0].double(),
        mean_e=e + guess[1].double(),
    )
