"""Calibration images made from a full-precision model alone, without any real image.

Source: PSAQ-ViT (Li et al., ECCV 2022): Gaussian noise is trained until the patches of every attention output
are as unlike as those of real images, and the classifier sees a class. The loss of image x is

    L(x) = - sum over blocks l of H(S_l(x)) + class_weight CE(model(x), c) + smoothness TV(x)

with S_l the cosine similarities of all pairs of patches in block l's attention output, H the differential
entropy of their kernel density (`patch_similarity`), c a class drawn by seed and TV the mean absolute
difference between neighbouring pixels, both directions added.

Deviations, for cost or where nothing is known to us: 60 steps in the place of 500, a fixed bandwidth of the
kernel, total variation as above with a weight chosen on held-out training images (docs/data_free.md), shifts
of a sixteenth of the side. Pixels are kept in the range that real ones have. Class and register tokens are no
patches. Of a Swin the pairs are those within windows, all windows of an image in one density. A detector has
no class of an image: the entropies of its backbone and TV alone are left, and neck and heads are not run.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.patch_similarity import (
    differential_entropy,
    patch_similarities,
)
from vit_ptq_bench.methods.quantization.calibration.sources import InputForm, SynthesisSettings
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

STAGE = "images"
"""What progress is told that is under way."""


def synthesise(
    model: nn.Module,
    form: InputForm,
    count: int,
    settings: SynthesisSettings,
    seed: int,
    progress: CalibrationProgress | None = None,
) -> list[Tensor]:
    """Return images as ``model`` takes them, float32 [b, 3, H, W] in batches of at most ``settings.batch``.

    The same arguments give the same images to the bit, on one device with one number of threads.

    Args:
        model: in full precision, of a supported family; it is not touched.
        form: of its images.
        count: how many images, 1 or more.
        settings: see `SynthesisSettings`.
        seed: of noise, classes, shifts and flips.
        progress: told of each step.

    Raises:
        MethodError: an unsupported model, or one whose attention outputs are not finite on the images.
    """
    wrapped = full_precision(model)
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(settings.batch, count - done) for done in range(0, count, settings.batch)]
    batches = []
    for number, size in enumerate(sizes):
        tell = None
        if progress is not None:
            tell = partial(_tell, progress, number * settings.steps, len(sizes) * settings.steps)
        batches.append(_trained(wrapped, form, size, settings, generator, tell))
    return batches


def full_precision(model: nn.Module) -> QuantizedModel:
    """Return a wrapped copy of a model whose quantizers stay off: it says where its attentions are."""
    return wrap_model(model, equal_table(BitWidth(FLOAT, FLOAT)))


def attention_entropy(
    model: QuantizedModel, images: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor | None]:
    """Return the entropy of patch similarities summed over all attentions, [b], and the logits [b, classes].

    The logits of a detector are None. Differentiable with respect to ``images``.

    Raises:
        MethodError: the model has no attention, or an attention's output is not finite.
    """
    entropies: list[Tensor] = []
    first = int(getattr(model.module, "num_prefix_tokens", 0))

    def hook(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        similarities = patch_similarities(output[:, first:], len(images))
        if not bool(torch.isfinite(similarities).all()):
            raise MethodError(f"{name}: outputs are not finite, so no images can be made from it")
        entropies.append(differential_entropy(similarities, bandwidth))

    with ExitStack() as stack:
        for layer in model.weighted_operations():
            if layer.role == "proj":
                stack.callback(layer.register_forward_hook(partial(hook, layer.name)).remove)
        logits = _run(model, images)
    if not entropies:
        raise MethodError("the model has no attention whose patches could be compared")
    return torch.stack(entropies).sum(dim=0), logits


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of vertical and of horizontal neighbours, added; [b]."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    right = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    return down + right


def _run(model: QuantizedModel, images: Tensor) -> Tensor | None:
    """Run all that has attention: a classifier as a whole, of a detector the backbone."""
    if model.structure.observe is None:
        logits: Tensor = model(images)
        return logits
    x = images
    for segment in model.structure.segments:
        x = segment.run(x)
    return None


def _trained(
    model: QuantizedModel,
    form: InputForm,
    size: int,
    settings: SynthesisSettings,
    generator: torch.Generator,
    tell: Any,
) -> Tensor:
    """One batch of images, from noise."""
    lowest, highest = _pixel_range(form, model.device)
    noise = torch.randn(size, 3, *form.size, generator=generator).to(model.device)
    images = noise.clamp(lowest, highest).requires_grad_()
    draws = torch.rand(size, generator=generator).to(model.device)  # of the classes
    optimizer = torch.optim.Adam([images], lr=settings.rate)
    for step in range(settings.steps):
        with torch.enable_grad():
            loss = _loss(model, _moved(images, settings.jitter, generator), draws, settings)
            (images.grad,) = torch.autograd.grad(loss, [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(lowest, highest)
        if tell is not None:
            tell(step + 1)
    return images.detach()


def _loss(
    model: QuantizedModel, images: Tensor, draws: Tensor, settings: SynthesisSettings
) -> Tensor:
    """L of the module's docstring, summed over images: none depends on its neighbours in the batch."""
    entropy, logits = attention_entropy(model, images, settings.bandwidth)
    loss = settings.smoothness * total_variation(images).sum() - entropy.sum()
    if logits is None:
        return loss
    classes = (draws * logits.shape[1]).long().clamp(max=logits.shape[1] - 1)
    return loss + settings.class_weight * F.cross_entropy(logits, classes, reduction="sum")


def _moved(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """The images shifted cyclically and perhaps mirrored, so that no pixel depends on its place alone."""
    shares = 2 * torch.rand(2, generator=generator) - 1
    shifts = [
        round(float(share) * jitter * side)
        for share, side in zip(shares, images.shape[2:], strict=True)
    ]
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    moved = images.roll(shifts, dims=(2, 3))
    return moved.flip(3) if mirrored else moved


def _pixel_range(form: InputForm, device: torch.device) -> tuple[Tensor, Tensor]:
    """What pixels 0 and 1 are after normalisation, each [3, 1, 1]."""
    mean = torch.tensor(form.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(form.std, device=device).view(-1, 1, 1)
    return -mean / std, (1 - mean) / std


def _tell(progress: CalibrationProgress, before: int, total: int, step: int) -> None:
    progress(before + step, total, STAGE)
