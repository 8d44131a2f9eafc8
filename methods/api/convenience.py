"""One call from a model to its quantized copy, for notebooks and scripts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


def quantize(
    model: nn.Module,
    method: str,
    bits: str,
    images: Tensor,
    *,
    protocol: Protocol = "equal",
    seed: int = 0,
    transforms: Sequence[str] = (),
    **settings: Any,
) -> parts.QuantizedModel:
    """Return a quantized copy of ``model``; the original is untouched.

    >>> import timm, torch
    >>> from vit_ptq_bench.methods import quantize
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    >>> images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> quantized = quantize(model, "repq-vit", "W4A8", images, scale="median")
    >>> quantized(images).shape
    torch.Size([8, 1000])

    Args:
        model: a supported architecture in float32.
        method: name of a registered method.
        bits: like ``W4A4``; 32 stands for floating point; ``W4A4:mixed`` shares the same bits out.
        images: calibration images, float32 [n, 3, H, W], preprocessed as for the model; taken to its device.
        protocol: ``equal`` for the common bit table, ``authors`` for the method's own.
        seed: of the random choices of method and transforms.
        transforms: names of transforms that go in front of the method, in this order; `bench list transforms`
            says which there are.
        settings: parameters of the method that differ from its defaults.

    Raises:
        MethodError: unknown method, parameter, transform, protocol or bit width, images of another form, or a
            model that cannot be quantized, or not be transformed so.
    """
    _check_images(images)
    chosen = _method_class(method).create(settings).with_transforms(transforms)
    width = BitWidth.parse(bits)
    table = chosen.bit_table(width, protocol)
    device = next((parameter.device for parameter in model.parameters()), images.device)
    calibration = parts.Calibration([images.to(device)], seed)
    table = chosen.mixed_table(model, table, width, calibration)
    return chosen.quantize(model, table, calibration)


def _method_class(name: str) -> type[Method]:
    known: dict[str, type[Method]] = METHODS.module_dict
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known) or sorted(known)
    raise MethodError(f"unknown method {name!r}; did you mean {', '.join(near)}?")


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or str(images.dtype) != "torch.float32":
        raise MethodError(
            f"images must be float32 [n, 3, height, width]; got {images.dtype} {list(shape)}"
        )
