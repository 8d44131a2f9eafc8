"""Losses that weigh the error of a unit's output by a measured curvature of the prediction's divergence.

Notation: z a unit's full-precision output of one image, z^ the quantized one, e = z^ - z, both flattened to d
values (tokens x channels); g the gradient at z^ of the prediction's divergence (`probe.Probe.gradient`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.reconstruction.losses import Batch, Loss
from vit_ptq_bench.methods.quantization.reconstruction.probe import Probe

Terms = Callable[[Tensor], tuple[Tensor, ...]]
"""Maps errors [b, ...] to the values of one or several terms, each a scalar, mean over images."""

RIDGE = 1e-4
"""Share of the mean diagonal that is added to E E^T: two refreshes of a unit that hardly moves give nearly
the same row, and the inverse would be of their rounding noise."""


def _mean_square(error: Tensor) -> tuple[Tensor, ...]:
    return (error.square().mean(),)


@dataclass(frozen=True)
class Quadratic(Loss):
    """Terms in the error that were measured; each is divided by its value before.

    Attributes:
        terms: of the error.
        before: their values over all images when they were measured.
    """

    terms: Terms = _mean_square
    before: tuple[Tensor, ...] = (torch.ones(()),)

    def __call__(self, batch: Batch) -> Tensor:
        values = self.terms(batch.output - batch.target)
        shares = [value / first for value, first in zip(values, self.before, strict=True)]
        return torch.stack(shares).sum()


def _now(terms: Terms, probe: Probe, prefix: bool) -> tuple[Tensor, ...]:
    """The values of terms for the errors of all images now, above zero."""
    sums: list[Tensor] = []
    count = 0
    for chosen, _, error in probe.errors(prefix):
        values = [len(chosen) * value for value in terms(error)]
        sums = values if not sums else [a + b for a, b in zip(sums, values, strict=True)]
        count += len(chosen)
    return tuple((value / count).clamp_min(torch.finfo(value.dtype).tiny) for value in sums)


@dataclass(frozen=True)
class MeasuredError(Loss):
    """Base of the losses that are measured in each unit; before that all values of the error count alike."""

    is_measured: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        return (batch.output - batch.target).square().mean()


@dataclass(frozen=True)
class LeastSquaresHessian(MeasuredError):
    """Error weighted by the Hessian that best explains gradients by errors, in the least-squares sense.

    Source: LS-ViT (Hwang et al., CVPR 2026), at second hand. Diagonal: ``H_i = sum_n g_i e_i / sum_n e_i^2``
    over images n, negative ones set to zero. Rank one: ``u = sum_n g s / sum_n s^2`` with
    ``s_n = sqrt(e_n . g_n)``, a negative product set to zero. Loss ``1/2 sum_i H_i e_i^2 + 1/2 (u . e)^2``
    as it stands, divided by its value over all images before training. Divided term by term, the one
    direction would count as much as all values together, and Adam follow it alone (docs/reconstruction.md).

    Attributes:
        rank_one: whether the second term counts.
    """

    rank_one: bool = True

    def measured(self, probe: Probe) -> Loss:
        terms = self._terms(*least_squares(probe))
        return Quadratic(self.weight, self.floor, self.every, terms, _now(terms, probe, True))

    def _terms(self, diagonal: Tensor, direction: Tensor) -> Terms:
        def terms(error: Tensor) -> tuple[Tensor, ...]:
            flat = error.flatten(1)
            weighted = (flat.square() @ diagonal).mean() / 2
            if not self.rank_one:
                return (weighted,)
            return (weighted + (flat @ direction).square().mean() / 2,)

        return terms


def least_squares(probe: Probe) -> tuple[Tensor, Tensor]:
    """Return diagonal H and direction u of `LeastSquaresHessian` ([d] each), with a quantized prefix."""
    sums: list[Tensor] = []
    for chosen, output, error in probe.errors(prefix=True):
        g, e = probe.gradient(output, chosen).flatten(1), error.flatten(1)
        strength = (g * e).sum(1).clamp_min(0).sqrt()
        found = [(g * e).sum(0), e.square().sum(0), strength @ g, strength.square().sum()]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    product, energy, pulled, total = sums
    tiny = torch.finfo(energy.dtype).tiny
    return (product / energy.clamp_min(tiny)).clamp_min(0), pulled / total.clamp_min(tiny)


@dataclass(frozen=True)
class FisherApproximation(MeasuredError):
    """Error weighted by a low-rank and a diagonal approximation of the Fisher information matrix.

    Source: FIMA-Q (Wu et al., CVPR 2025; released code read). At each of k refreshes a row is added to G, the
    mean over images of |g|, and one to E, the mean of |e|, with this unit alone quantized, drops on. With
    ``a = |e| G^T`` and ``B = (E E^T)^-1`` the loss is ``a B a^T + mean(e^2 mean_j G_j)``, each term divided
    by its value at the refresh. E E^T gets a small ridge (`RIDGE`).

    Attributes:
        rank: k, refreshes in a unit.
    """

    rank: int = 5
    gradients: tuple[Tensor, ...] = ()
    errors: tuple[Tensor, ...] = ()

    @property
    def refreshes(self) -> int:
        return self.rank

    def measured(self, probe: Probe) -> Loss:
        gradient, error = mean_sizes(probe)
        gradients, errors = (*self.gradients, gradient), (*self.errors, error)
        terms = fisher_terms(torch.stack(gradients), torch.stack(errors))
        return _Growing(
            self.weight,
            self.floor,
            self.every,
            terms,
            _now(terms, probe, False),
            self.rank,
            gradients,
            errors,
        )


@dataclass(frozen=True)
class _Growing(Quadratic):
    """A measured `FisherApproximation`, which can be measured again."""

    rank: int = 5
    gradients: tuple[Tensor, ...] = ()
    errors: tuple[Tensor, ...] = ()

    @property
    def refreshes(self) -> int:
        return self.rank

    def measured(self, probe: Probe) -> Loss:
        again = FisherApproximation(
            self.weight, self.floor, self.every, self.rank, self.gradients, self.errors
        )
        return again.measured(probe)


def mean_sizes(probe: Probe) -> tuple[Tensor, Tensor]:
    """Return the means over images of |g| and |e| ([d] each), the unit alone quantized, drops on."""
    sums: list[Tensor] = []
    count = 0
    for chosen, output, error in probe.errors(prefix=False, drop=True):
        sizes = [probe.gradient(output, chosen), error]
        found = [size.flatten(1).abs().sum(0) for size in sizes]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
        count += len(chosen)
    gradient, size = sums
    return gradient / count, size / count


def fisher_terms(gradients: Tensor, errors: Tensor) -> Terms:
    """Return the two terms of `FisherApproximation` for G and E ([k, d] each)."""
    moment = errors.double() @ errors.double().T
    moment.diagonal().add_(RIDGE * moment.diagonal().mean().clamp_min(1e-300))
    inverse = torch.linalg.inv(moment).to(errors.dtype)
    diagonal = gradients.mean(0)

    def terms(error: Tensor) -> tuple[Tensor, ...]:
        flat = error.flatten(1)
        a = flat.abs() @ gradients.T
        return ((a @ inverse) * a).sum(1).mean(), (flat.square() @ diagonal).mean()

    return terms


@dataclass(frozen=True)
class PerturbationHessian(MeasuredError):
    """Error weighted by the Hessian's diagonal, from gradients at perturbed full-precision outputs.

    Source: APHQ-ViT (Wu et al., CVPR 2025; released code read). ``signs = "constant"`` is the released form:
    ``|g(z + 1e-6) - g(z - 1e-6)|``, mean over images, the same constant on every channel. Wherever the unit's
    output is read by a LayerNorm, which every block's is in a vision transformer, that constant is removed
    again: the difference is exactly zero, and what comes out in float32 is rounding noise, which depends on
    hardware and is roughly larger where the sensitivity is (the class token first). ``signs = "random"`` is
    what was meant: ``r (g(z + s r) - g(z - s r)) / 2s`` with random signs r, whose expectation is the
    Hessian's diagonal (Hutchinson), mean over probes and images, negative ones set to zero.

    Attributes:
        signs: of the perturbation.
        probes: K, random draws per image.
        step: size of a random perturbation, in standard deviations of the unit's output.
    """

    signs: Literal["random", "constant"] = "random"
    probes: int = 8
    step: float = 1e-3

    def measured(self, probe: Probe) -> Loss:
        random = self.signs == "random"
        diagonal = (
            perturbed(probe, self.probes, self.step) if random else perturbed_by_constant(probe)
        )

        def terms(error: Tensor) -> tuple[Tensor, ...]:
            return ((error.flatten(1).square() @ diagonal).mean(),)

        return Quadratic(self.weight, self.floor, self.every, terms, _now(terms, probe, True))


def perturbed(probe: Probe, probes: int, step: float) -> Tensor:
    """Return the Hessian's diagonal at the full-precision output ([d], >= 0) from random-sign probes."""
    total: Tensor | float = 0.0
    count = 0
    for chosen, target in probe.targets():
        size = step * target.std()
        for _ in range(probes):
            draws = torch.rand(target.shape, generator=probe.generator, device=target.device)
            signs = torch.where(draws < 0.5, -1.0, 1.0).to(target.dtype)
            change = probe.gradient(target + size * signs, chosen)
            change -= probe.gradient(target - size * signs, chosen)
            total = total + (signs * change).flatten(1).sum(0) / (2 * size)
        count += probes * len(chosen)
    assert isinstance(total, Tensor)
    return (total / count).clamp_min(0)


def perturbed_by_constant(probe: Probe) -> Tensor:
    """Return the released code's importance ([d]): one constant on all channels."""
    total: Tensor | float = 0.0
    count = 0
    for chosen, target in probe.targets():
        change = probe.gradient(target + 1e-6, chosen) - probe.gradient(target - 1e-6, chosen)
        total = total + change.flatten(1).abs().sum(0)
        count += len(chosen)
    assert isinstance(total, Tensor)
    return total / count
