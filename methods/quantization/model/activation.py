"""The activation between the two layers of an MLP: ReLU in its place, and forms that ask for a GELU."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM

MARK = "is_relu"
"""Name of the buffer that tells a file of a replaced activation."""

ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
"""Modules whose classes are activations, entry by entry where a model puts them between two layers."""

PROBE = torch.linspace(-100, 100, 20_001)
"""Where an activation is looked at."""

LOWEST = -GELU_MINIMUM - 1e-3
"""What an activation may go down to behind which GELU's minimum is taken for its own; the tanh form of GELU
goes 7e-5 below it."""


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
    """Return the MLPs of a wrapped model, in execution order, with a GELU or ReLU alone inside.

    One whose output a norm changes is none of them: nothing tells what it should give then.
    """
    return list(_mlps(model))


def require_gelu(model: QuantizedModel) -> None:
    """Refuse a form of numbers from GELU's minimum up behind an activation that goes below it.

    Raises:
        MethodError: there is one, or a gate or a norm; the site and what goes below are named.
    """
    for fc1, fc2 in _layers(model):
        quantizer = fc2.input_quantizer
        if quantizer.spec.is_float or quantizer.domain != "gelu":
            continue
        below = _goes_below(model.module, fc1, fc2)
        if below is not None:
            raise MethodError(
                f"{quantizer.site}: the form {quantizer.spec.scheme!r} has values from GELU's minimum up "
                f"only, and {below} goes below it; use a form such as 'uniform' there"
            )


def _goes_below(model: nn.Module, fc1: WeightedOperation, fc2: WeightedOperation) -> str | None:
    """What between both layers gives values below GELU's minimum, in words."""
    if _gated(fc1, fc2):
        return "what its gate multiplies"
    for name, module in _between(model, fc1.name, fc2.name):
        lowers = type(module).__module__ in ACTIVATIONS and float(module(PROBE).min()) < LOWEST
        if lowers or _is_norm(name, module, fc2.name):
            return f"{name}, a {type(module).__name__},"
    return None


def _mlps(model: QuantizedModel) -> Iterator[ActivatedMlp]:
    for fc1, fc2 in _layers(model):
        found = None if _gated(fc1, fc2) else _activation_between(model.module, fc1.name, fc2.name)
        if found is not None and model.structure.writes(fc2):
            yield ActivatedMlp(fc1, fc2, *found)


def _layers(model: QuantizedModel) -> Iterator[tuple[WeightedOperation, WeightedOperation]]:
    """Both layers of each MLP, in execution order."""
    fc1: WeightedOperation | None = None
    for operation in model.weighted_operations():
        if operation.role == "fc1":
            fc1 = operation
        elif operation.role == "fc2" and fc1 is not None:
            yield fc1, operation
            fc1 = None


def _gated(fc1: WeightedOperation, fc2: WeightedOperation) -> bool:
    """Whether half of what ``fc1`` gives multiplies the other half."""
    return fc1.weight.shape[0] != fc2.weight.shape[1]


def _is_norm(name: str, module: nn.Module, second: str) -> bool:
    """Whether a module normalises beside the layer ``second``, in an MLP that is a module of its own."""
    mlp = second.rpartition(".")[0]
    return bool(mlp) and name.rpartition(".")[0] == mlp and type(module).__name__.endswith("Norm")


def _between(model: nn.Module, first: str, second: str) -> list[tuple[str, nn.Module]]:
    """Dotted names and modules of all in the module that holds both layers."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    path = ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return list(model.get_submodule(path).named_modules(prefix=path))


def _activation_between(
    model: nn.Module, first: str, second: str
) -> tuple[nn.Module, str, str] | None:
    """Holder, child and dotted name of the only activation in the module that holds both layers.

    None: there is another number of them, or a norm behind.
    """
    found = _between(model, first, second)
    names = [name for name, module in found if isinstance(module, nn.GELU | ReluActivation)]
    if len(names) != 1 or any(_is_norm(name, module, second) for name, module in found):
        return None
    holder, _, child = names[0].rpartition(".")
    return model.get_submodule(holder), child, names[0]
