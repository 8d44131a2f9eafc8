"""A form from elsewhere is built, calibrated, saved and loaded like the built-in ones."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization import (
    FORMS,
    BitWidth,
    Quantizer,
    TensorSpec,
    load_quantized,
    register_form,
    save_quantized,
)
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

BUILT_IN = {
    *("uniform", "dual-uniform", "power-of-two-factor"),
    *("uniform-power-of-two", "uniform-fixed-point"),
    *("log2", "log-sqrt2", "log-sqrt2-plus-zero", "log-int-softmax"),
    *("log", "shifted-log", "adalog", "shifted-adalog", "offset-log"),
    *("twin-softmax", "twin-softmax-summed", "twin-gelu"),
}


class Ternary(Quantizer):
    """Minus scale, zero or scale; what is nearer to zero than the threshold is zero."""

    threshold: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("threshold", None)
        self.register_buffer("last_error", torch.zeros(1), persistent=False)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.scale = torch.maximum(low.abs(), high.abs())
        self.threshold = (self.scale / 3).double().reshape(1, 1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return x.sign() * (x.abs() > self.threshold.float()) * self.scale


@pytest.fixture
def ternary() -> Iterator[type[Quantizer]]:
    yield register_form("ternary", "ternary-too")(Ternary)
    for name in ("ternary", "ternary-too"):
        FORMS.module_dict.pop(name, None)


def test_the_built_in_forms_are_found():
    assert set(FORMS.module_dict) >= BUILT_IN
    assert not FORMS.broken
    assert isinstance(build_quantizer(TensorSpec(4), "x"), UniformQuantizer)


@torch.no_grad()
def test_a_form_from_elsewhere_lives_through_a_file(ternary, vit, images, calibration, tmp_path):
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth(4, 4))
    plain = method.quantize(vit, table, calibration)(images)
    table = table.change("fc1.input", scheme="ternary")
    table = table.change("fc2.weight", scheme="ternary-too", granularity="tensor")
    quantized = method.quantize(vit, table, calibration)
    operation = quantized.module.blocks[0].mlp.fc1
    assert type(operation.input_quantizer) is ternary
    assert len(operation.input_quantizer(torch.randn(999)).unique()) == 3
    assert not torch.equal(quantized(images), plain)
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", vit)
    assert again.table == table
    assert torch.equal(again(images), quantized(images))
    loaded = again.module.blocks[0].mlp.fc1.input_quantizer
    assert loaded.threshold.shape == (1, 1) and loaded.threshold.dtype == torch.float64


def test_an_unknown_form_is_named_with_those_that_exist():
    with pytest.raises(
        MethodError, match=r"unknown scheme 'log-sqrt3' \(do you mean 'log-sqrt2'\?\); known: "
    ):
        build_quantizer(TensorSpec(4, scheme="log-sqrt3"), "x")


def test_forms_that_failed_to_import_are_named(monkeypatch):
    monkeypatch.setitem(FORMS.broken, "mine", "SyntaxError: oh")
    with pytest.raises(MethodError, match="mine failed: SyntaxError: oh"):
        build_quantizer(TensorSpec(4, scheme="mine"), "x")


def test_names_are_unique_and_kebab():
    with pytest.raises(MethodError, match="'uniform' is taken by .*UniformQuantizer"):
        register_form("uniform")(Ternary)
    with pytest.raises(MethodError, match="kebab"):
        register_form("Ternary")
    with pytest.raises(MethodError, match="needs a name"):
        register_form()


def test_a_form_must_quantize():
    class Idle(Quantizer):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Idle(TensorSpec(4), "x")  # type: ignore[abstract]


def test_a_form_without_a_range_says_so():
    class Rangeless(Quantizer):
        def fake_quantize(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(MethodError, match=r"blocks\.0\.x: a Rangeless has no range"):
        Rangeless(TensorSpec(4), "blocks.0.x").set_range(torch.zeros(1), torch.ones(1))
