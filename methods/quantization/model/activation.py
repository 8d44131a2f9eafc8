"""The activation between the two layers of an MLP, and ReLU in its place."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

MARK = "is_relu"
"""Name of the buffer that tells a file of a replaced activation."""


class ReluActivation(nn.Module):
    """ReLU where the architecture has another activation.

    Its one buffer is a mark that goes into the model's file: whoever loads the weights has to replace the
    activation too.
    """

    is_relu: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(MARK, torch.ones(1, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part of ``x``."""
        return x.relu()


@dataclass(frozen=True)
class ActivatedMlp:
    """An MLP of a block whose activation can be replaced.

    Attributes:
        fc1, fc2: its layers.
        holder: the module that holds the activation, under the name ``child``.
        place: dotted name of the activation in the model.
    """

    fc1: WeightedOperation
    fc2: WeightedOperation
    holder: nn.Module
    child: str
    place: str

    @property
    def activation(self) -> nn.Module:
        """What stands between the layers."""
        found: nn.Module = getattr(self.holder, self.child)
        return found

    def use_relu(self) -> None:
        """Put ReLU in the place of the activation."""
        setattr(self.holder, self.child, ReluActivation().to(self.fc1.weight.device))


def mlps_of(model: QuantizedModel) -> list[ActivatedMlp]:
    """Return the MLPs of a wrapped model, in execution order, that have a GELU or its replacement in them."""
    return list(_mlps(model))


def _mlps(model: QuantizedModel) -> Iterator[ActivatedMlp]:
    fc1: WeightedOperation | None = None
    for operation in model.weighted_operations():
        if operation.role == "fc1":
            fc1 = operation
        elif operation.role == "fc2" and fc1 is not None:
            found = _activation_between(model.module, fc1.name, operation.name)
            if found is not None:
                yield ActivatedMlp(fc1, operation, *found)
            fc1 = None


def _activation_between(
    model: nn.Module, first: str, second: str
) -> tuple[nn.Module, str, str] | None:
    """Holder, child and dotted name of the only activation in the module that holds both layers."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    path = ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    names = [
        name
        for name, module in model.get_submodule(path).named_modules(prefix=path)
        if isinstance(module, nn.GELU | ReluActivation)
    ]
    if len(names) != 1:
        return None
    holder, _, child = names[0].rpartition(".")
    return model.get_submodule(holder), child, names[0]
