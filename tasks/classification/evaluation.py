"""Top-1 and top-5 accuracy with their uncertainty."""

from collections.abc import Iterable
from math import sqrt
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress
from vit_ptq_bench.tasks.api.transfer import moved
from vit_ptq_bench.tasks.errors import TaskError


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, in percent."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def summarise(hits: dict[str, NDArray[np.bool_]], first: str) -> Evaluation:
    """Turn per-image hits (bool [n] by metric) into an evaluation; ``first`` gives the outcomes."""
    n = len(hits[first])
    shares = {name: float(values.mean()) for name, values in hits.items()}
    return Evaluation(
        metrics={name: 100 * share for name, share in shares.items()},
        intervals={name: wilson_interval(int(values.sum()), n) for name, values in hits.items()},
        standard_errors={name: 100 * sqrt(p * (1 - p) / n) for name, p in shares.items()},
        n=n,
        outcomes=hits[first],
    )


@torch.inference_mode()
def classify(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    n: int,
    progress: EvaluationProgress | None,
) -> Evaluation:
    """Evaluate a classifier.

    Args:
        module: images float32 [b, 3, H, W] -> logits [b, classes].
        batches: images and labels (int64 [b]).
        device: where to compute.
        n: number of images in all, for the progress.
        progress: told after each batch.

    Raises:
        TaskError: logits that are not finite, or that do not fit the labels.
    """
    hits: dict[str, list[NDArray[np.bool_]]] = {"top1": [], "top5": []}
    done = 0
    for images, labels in batches:
        logits = module(moved(images, device))
        _require_logits(logits, labels, done)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        right = ranked == labels[:, None]
        hits["top1"].append(right[:, 0].numpy())
        hits["top5"].append(right.any(dim=1).numpy())
        done += len(labels)
        if progress is not None:
            progress(done, n)
    return summarise({name: np.concatenate(parts) for name, parts in hits.items()}, "top1")


def _require_logits(logits: Tensor, labels: Tensor, done: int) -> None:
    """Refuse what would be ranked all the same; ``done`` images came before the batch."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise TaskError(
            f"the model gives outputs of shape {tuple(logits.shape)} for {len(labels)} images; a classifier "
            "gives one row of logits per image"
        )
    classes = logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise TaskError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, but the model has {classes} outputs"
        )
    finite = torch.isfinite(logits).all(dim=1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        raise TaskError(
            f"the logits of image {done + first + 1} are not finite, and {len(finite) - int(finite.sum())} "
            f"of {len(finite)} in its batch are so; weights, scales or biases of the model hold NaN or "
            "overflow"
        )
