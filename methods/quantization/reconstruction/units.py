"""What is reconstructed at once: a layer, half a block, a block, a stage."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Literal

from torch import Tensor

from methods.quantization.model import Segment, Structure

Granularity = Literal["layer", "half", "block", "stage"]


def units_of(structure: Structure, granularity: Granularity) -> list[Segment]:
    """Return units whose composition is the model, in execution order.

    ``stage`` joins the blocks (and the merging before them) of one resolution: in a ViT all blocks.
    ``half`` cuts blocks into attention and MLP, each with its residual. ``layer`` gives blocks, which the
    engine takes layer by layer.
    """
    segments = structure.segments
    if granularity == "half":
        return [part for segment in segments for part in (segment.halves or (segment,))]
    if granularity == "stage":
        return [_joined(list(group)) for _, group in groupby(segments, key=_stage)]
    return list(segments)


def _stage(segment: Segment) -> tuple[str, int]:
    kind = segment.kind if segment.kind in ("embed", "head") else "block"
    return kind, segment.stage


def _joined(segments: list[Segment]) -> Segment:
    if len(segments) == 1:
        return segments[0]
    operations = tuple(op for segment in segments for op in segment.operations)
    name = f"{segments[0].name}..{segments[-1].name}"
    return Segment(name, "block", partial(run_all, segments), operations, segments[0].stage)


def run_all(segments: Sequence[Segment], x: Tensor) -> Tensor:
    """Send ``x`` through ``segments``, one after the other."""
    for segment in segments:
        x = segment.run(x)
    return x
