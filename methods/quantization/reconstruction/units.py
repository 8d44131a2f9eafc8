"""The units of a reconstruction: layers, halves of blocks, blocks, pairs of them, stages, the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.structure import Output, Segment, Structure
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity


@dataclass(frozen=True)
class Step:
    """One unit in the course of a reconstruction.

    Attributes:
        unit: what is trained.
        finished: what is frozen afterwards, the unit or its first half.
        behind: the unit, then what lies behind it in the model.
    """

    unit: Segment
    finished: Segment
    behind: Sequence[Segment]


def steps_of(structure: Structure, granularity: UnitGranularity) -> list[Step]:
    """Return the steps whose finished parts are the model, in execution order.

    ``pair`` trains two consecutive blocks of one resolution and freezes the first; the second is trained
    again with its successor. Other granularities are those of `units_of`.
    """
    if granularity != "pair":
        units = units_of(structure, granularity)
        return [Step(unit, unit, units[index:]) for index, unit in enumerate(units)]
    steps: list[Step] = []
    start = 0
    for (kind, _), group in groupby(structure.segments, key=lambda s: (s.kind, s.stage)):
        members = list(group)
        behind = structure.segments[start:]
        start += len(members)
        if kind != "block" or len(members) == 1:
            steps += [Step(s, s, behind[i:]) for i, s in enumerate(members)]
            continue
        for index, pair in enumerate(pairwise(members)):
            unit = _joined(list(pair))
            last = index == len(members) - 2
            steps.append(Step(unit, unit if last else pair[0], [unit, *behind[index + 2 :]]))
    return steps


def units_of(structure: Structure, granularity: UnitGranularity) -> list[Segment]:
    """Return units whose composition is the model, in execution order.

    ``model`` is one unit, whose output is that of `run_whole`;
    ``disjoint-pair`` joins each two consecutive blocks of one resolution, the last of an odd number alone;
    ``stage`` joins the blocks (and the merging before them) of one resolution: in a ViT all blocks.
    ``half`` cuts blocks into attention and MLP, each with its residual. ``layer`` gives blocks, which the
    engine takes layer by layer.
    """
    segments = structure.segments
    if granularity == "model":
        operations = tuple(op for segment in segments for op in segment.operations)
        return [Segment("model", "model", partial(run_whole, structure), operations)]
    if granularity == "half":
        return [part for segment in segments for part in (segment.halves or (segment,))]
    if granularity == "disjoint-pair":
        return _disjoint_pairs(segments)
    if granularity == "stage":
        return [_joined(list(group)) for _, group in groupby(segments, key=_stage)]
    return list(segments)


def _disjoint_pairs(segments: Sequence[Segment]) -> list[Segment]:
    found: list[Segment] = []
    for (kind, _), group in groupby(segments, key=lambda s: (s.kind, s.stage)):
        members, size = list(group), 2 if kind == "block" else 1
        found += [_joined(members[i : i + size]) for i in range(0, len(members), size)]
    return found


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


def features_of(structure: Structure, run: Callable[[], Output]) -> Output:
    """Return the penultimate feature of what ``run`` sends through the model.

    Args:
        structure: of the model; of a classifier what enters the layers of the role ``head`` is the feature,
            [b, F], side by side where there are two; where there is none, and of a detector, it is what the
            model says.
        run: gives what the model says.
    """
    heads = [op for op in structure.operations if op.role == "head"]
    if structure.tail is not None or not heads:
        return run()
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    with ExitStack() as stack:
        for head in heads:
            stack.callback(head.register_forward_pre_hook(note).remove)
        run()
    return torch.cat(seen, dim=-1)


def run_whole(structure: Structure, images: Tensor) -> Tensor:
    """Return penultimate feature and prediction of images in a row, [b, n]: the output of the unit ``model``.

    Feature maps of a detector are both, and stand there once.
    """
    said: list[Output] = []

    def predict() -> Output:
        said.append(predict_all(structure, images))
        return said[0]

    features = features_of(structure, predict)
    if features is said[0]:
        return _in_a_row(said[0])
    return torch.cat([_in_a_row(features), _in_a_row(said[0])], dim=1)


def _in_a_row(output: Output) -> Tensor:
    parts = (output,) if isinstance(output, Tensor) else output
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def features_in(row: Tensor, like: Output) -> Output:
    """Return the penultimate feature in an output of `run_whole`, of the shapes of ``like``."""
    sizes = [part[0].numel() for part in ((like,) if isinstance(like, Tensor) else like)]
    return _parted(row[:, : sum(sizes)], like)


def prediction_in(row: Tensor, like: Output) -> Output:
    """Return the prediction in an output of `run_whole`, of the shapes of ``like``."""
    sizes = [part[0].numel() for part in ((like,) if isinstance(like, Tensor) else like)]
    return _parted(row[:, -sum(sizes) :], like)


def _parted(row: Tensor, like: Output) -> Output:
    if isinstance(like, Tensor):
        return row
    parts = torch.split(row, [part[0].numel() for part in like], dim=1)
    return tuple(part.reshape(-1, *own.shape[1:]) for part, own in zip(parts, like, strict=True))


def predict_all(structure: Structure, images: Tensor) -> Output:
    """Return what the segments and the tail say of images: logits, or a detector's feature maps."""
    segments = structure.segments
    return run_rest(segments, structure.tail, (), segments[0].run(images))
