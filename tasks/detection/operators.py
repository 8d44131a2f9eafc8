"""The compiled operators of mmcv that supported detectors need, on torchvision's and torch's.

mmcv-lite has every ``mmcv.ops`` module in Python but not the compiled ``mmcv._ext`` behind them, and building
that takes a compiler and half an hour. Where it is absent, `provide_operators` puts a module of that name in
its place. `openmmlab` calls it before the first import of mmdet.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor

from vit_ptq_bench.tasks.errors import TaskError

NAME = "mmcv._ext"

AVERAGE = 1
"""mmcv's number of the pooling mode "avg"; 0 is "max"."""


def provide_operators() -> bool:
    """Make mmcv's operators importable; return whether torchvision's stand in for compiled ones.

    Nothing happens where mmcv was compiled. Operators other than NMS, RoIAlign and the forward pass of
    deformable attention raise `TaskError` with their name when they are called.
    """
    present = sys.modules.get(NAME)
    if present is not None:
        return isinstance(present, _Operators)
    if importlib.util.find_spec(NAME) is not None:
        return False
    sys.modules[NAME] = _Operators(NAME)
    return True


class _Operators(ModuleType):
    """Stands in for ``mmcv._ext``; mmcv asks whether names exist when it is imported."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        # mmengine asks for the loader; None tells it that compiled operators are absent.
        self.__spec__ = ModuleSpec(name, loader=None)
        self.nms = nms
        self.roi_align_forward = roi_align_forward
        self.roi_align_backward = roi_align_backward

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # what the import system asks for
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise TaskError(
                f"mmcv's compiled operator {name!r} is not available with mmcv-lite; "
                "install a compiled mmcv to use models that need it"
            )

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that stay, highest score first (int64).

    Args:
        boxes: [n, 4], (x1, y1, x2, y2).
        scores: [n].
        iou_threshold: a box goes if it overlaps a better one by more.
        offset: 1 where a box from x1 to x2 is x2 - x1 + 1 wide, as in mmdet 1; else 0.
    """
    if offset:
        # Widths grow by one if the far corners do; overlaps are then those of the definition.
        boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    kept: Tensor = torchvision.ops.nms(boxes, scores, iou_threshold)
    return kept


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled regions into ``output`` ([n, C, aligned_height, aligned_width]).

    Args:
        input: features [B, C, H, W].
        rois: [n, 5], (image, x1, y1, x2, y2).
        output: is overwritten.
        argmax_y, argmax_x: of max pooling, unused.
        spatial_scale: features per image pixel.
        sampling_ratio: samples per bin and axis; 0: as many as the bin is large.
        pool_mode: 1, average.
        aligned: shift by half a pixel.

    Raises:
        TaskError: max pooling.
    """
    _require_average(pool_mode)
    pooled = torchvision.ops.roi_align(
        input, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features into ``grad_input``; arguments as in `roi_align_forward`."""
    _require_average(pool_mode)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois,
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def provide_deformable_attention(
    gather: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Let ``gather``, mmcv's own form without operators, stand in for the compiled one.

    mmcv takes that form by itself on a CPU alone; it can be imported once operators are in place.

    Args:
        gather: maps value [B, keys, heads, C], of all levels in a row; the levels' (H, W) [levels, 2];
            sampling locations [B, queries, heads, levels, points, 2], (x, y) as shares of a level's size;
            and attention weights [B, queries, heads, levels, points] to [B, queries, heads * C].
    """
    present = sys.modules.get(NAME)
    if not isinstance(present, _Operators):
        return

    def ms_deform_attn_forward(
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        locations: Tensor,
        weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        # Where levels start follows from their shapes; the step is of the compiled form.
        return gather(value, shapes, locations, weights)

    setattr(present, ms_deform_attn_forward.__name__, ms_deform_attn_forward)


def _require_average(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise TaskError("RoIAlign with max pooling is not available with mmcv-lite")
