"""The units of a reconstruction: layers, halves of blocks, blocks, stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from torch import Tensor

from vit_ptq_bench.methods.quantization.model.structure import Output, Segment, Structure
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity


def units_of(structure: Structure, granularity: UnitGranularity) -> list[Segment]:
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
    run, stage = partial(run_all, segments), segments[0].stage
    return Segment(name, "block", run, operations, stage, tap=segments[-1].tap)


def run_rest(
    units: Sequence[Segment],
    tail: Callable[[Sequence[Tensor]], Output] | None,
    taps: Sequence[Tensor],
    x: Tensor,
) -> Output:
    """Send a unit's output ``x`` through the rest of the model.

    Args:
        units: the unit, then the units behind it.
        tail: `Structure.tail`.
        taps: those of the units before, for the same images; read by the tail alone.
        x: the output of the first of ``units``.
    """
    maps = list(taps)
    for position, unit in enumerate(units):
        if position:
            x = unit.run(x)
        if unit.tap is not None and tail is not None:
            maps.append(unit.tap(x))
    return x if tail is None else tail(maps)


def run_all(segments: Sequence[Segment], x: Tensor) -> Tensor:
    """Send ``x`` through ``segments``, one after the other."""
    for segment in segments:
        x = segment.run(x)
    return x
