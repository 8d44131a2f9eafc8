"""The base of all quantizers."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec

Domain = Literal["real", "nonnegative", "gelu"]
"""What a form can stand for: any number, numbers from 0 up, numbers from GELU's minimum up."""


class Quantizer(nn.Module, ABC):
    """A module that stands at one site and maps a float tensor to a float tensor of the same shape.

    That is "fake quantization". What the calibration sets are buffers, empty until then and of any shape
    and type afterwards; they travel with the model and into its file. What a form keeps besides must follow
    from ``spec`` and the buffers, because a saved model brings nothing else back.

    Attributes:
        scale: buffer, float32; the base asks it alone whether the quantizer has been calibrated.
        spec: what the bit table says of this site.
        site: name of the site in the model, for messages.
        axis: the dimension that has a scale per entry, None for one scale.
        active: False lets the tensor through unchanged.
        domain: what the form can stand for; no model is wrapped with it at a site that has other values.
        levels_scale: whether all levels are ``scale`` times fixed numbers, less `shift`, and the scale is the
            largest: reconstruction can train it then whatever the levels are.
        shift: added to the tensor before, taken off the levels afterwards.
    """

    domain: ClassVar[Domain] = "real"

    scale: Tensor
    levels_scale: ClassVar[bool] = False
    shift: ClassVar[float] = 0.0

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.site = site
        self.axis = axis
        self.active = False
        self.register_buffer("scale", torch.empty(0))

    @property
    def initialised(self) -> bool:
        """Whether the quantizer has its parameters (dynamic and float ones need none)."""
        return self.spec.is_float or self.spec.dynamic or self.scale.numel() > 0

    @property
    def quantizes(self) -> bool:
        """Whether a forward now changes its input."""
        return self.active and not self.spec.is_float

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` fake-quantized (any float tensor; same shape and dtype)."""
        if not self.quantizes:
            return x
        if not self.initialised:
            raise MethodError(f"{self.site}: the quantizer was used before it was calibrated")
        return self.fake_quantize(x)

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x`` (any float tensor; same shape and dtype), whether active or not."""

    def shift_at(self, x: Tensor) -> Tensor | float:
        """Return what is added to each entry of ``x``, of a form that broadcasts: `shift`."""
        return self.shift

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the parameters so that the codes cover [low, high] (shape [groups]).

        Raises:
            MethodError: the form has no range to set, or a bound is not finite.
        """
        raise MethodError(
            f"{self.site}: a {type(self).__name__} has no range that could be set; "
            "calibrate this site in another way"
        )

    def low_order(self, values: Tensor) -> Tensor | None:
        """Return the low-order part of quantized values, where layers leave out products of two of them.

        Args:
            values: what `fake_quantize` or a weight's codes gave, float.

        Returns:
            Of the same shape; None: values are one number each.
        """
        return None

    @property
    def stored_bits(self) -> float:
        """Bits that a value takes: log2 of the number of codes, where that is not ``spec.bits``."""
        return float(self.spec.bits)

    @property
    def operand_bits(self) -> int:
        """Bits of the number that a product multiplies for a value, where codes stand for wider numbers."""
        return self.spec.bits

    @property
    def groups(self) -> int | None:
        """Number of equal blocks of a tensor that have a scale each; None: the form alone knows."""
        return None

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the lowest and the highest value that is not clipped, float32, of shapes that meet ``x``.

        What lies farther out than half a step beyond the outermost level becomes that level whatever it is.
        None: the form does not say.
        """
        return None

    def settle(self) -> None:
        """Look at the parameters' values for what a forward needs to know of them, so that none has to.

        Called when they are final: a forward that is traced (`torch.export`) cannot look at values.
        """

    def problem(self) -> str | None:
        """Return in words what is wrong with the parameters that calibration or a file has set, or None.

        Asked when a method has done its work and when a saved model is read. A form that keeps more than a
        scale, or knows more of it, adds to this.
        """
        if self.spec.is_float or self.spec.dynamic or not self.scale.numel():
            return None
        if self.scale.dtype != torch.float32:
            return f"scales of type {self.scale.dtype}, not float32"
        if not bool(torch.isfinite(self.scale).all()):
            return "scales that are NaN or infinite"
        if not bool((self.scale > 0).all()):
            return "scales that are zero or negative"
        return None

    def _require_finite(self, *tensors: Tensor) -> None:
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise MethodError(f"{self.site}: NaN or infinite values reached the quantizer")

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.spec.bits} bit, {self.spec.scheme}, {self.spec.granularity}"


class CodedQuantizer(Quantizer):
    """Base of the forms that a weight can be kept in: every value has an integer code of the spec's bits."""

    @property
    @abstractmethod
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest integer code; no more than 2^b of them."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Tensor:
        """Return the integer codes of ``x`` (int32, same shape)."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """Return what ``codes`` (whole numbers, any shape that `quantize` takes) stand for, float32."""

    def code_problem(self) -> str | None:
        """Return in words why the parameters, in a file, cannot give codes a meaning, or None."""
        return self.problem()
