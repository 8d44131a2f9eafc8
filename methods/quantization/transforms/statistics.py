"""Means over the calibration images of what layers read and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.passes import check_finite, require_reached
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel


@dataclass
class Probe:
    """The mean over all rows [n, K] of what an operation reads, or writes.

    Attributes:
        operation: the linear layer.
        moment: gives the sum over rows of what is averaged, in float64.
        writes: look at outputs, else at inputs.
        total: what `moment` gave so far, summed.
        rows: how many rows were seen.
    """

    operation: WeightedOperation
    moment: Callable[[Tensor], Tensor]
    writes: bool = False
    total: Tensor | None = None
    rows: int = 0

    @property
    def mean(self) -> Tensor:
        """Float64, as `moment` shapes it."""
        assert self.total is not None
        return self.total / self.rows

    def see(self, x: Tensor) -> None:
        """Take in an input or output [..., K]."""
        check_finite(x, f"{self.operation.name}.{'output' if self.writes else 'input'}")
        rows = x.flatten(0, -2)
        total = self.moment(rows)
        self.total = total if self.total is None else self.total + total
        self.rows += len(rows)


@torch.no_grad()
def observe(
    model: QuantizedModel, calibration: Calibration, probes: Sequence[Probe]
) -> Sequence[Probe]:
    """Show all calibration images to ``probes`` and return them.

    Raises:
        MethodError: NaN or infinite activations; or the forward pass never reaches an operation.
    """
    with ExitStack() as stack:
        for probe in probes:
            operation = probe.operation
            hook = partial(_see_output, probe) if probe.writes else partial(_see_input, probe)
            register = (
                operation.register_forward_hook
                if probe.writes
                else operation.register_forward_pre_hook
            )
            stack.callback(register(hook).remove)
        for batch in calibration.batches:
            model(batch)
    names = (probe.operation.name for probe in probes)
    require_reached(names, {probe.operation.name for probe in probes if probe.rows})
    return probes


def _see_input(probe: Probe, module: Any, inputs: tuple[Tensor, ...]) -> None:
    probe.see(inputs[0])


def _see_output(probe: Probe, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    probe.see(output)
