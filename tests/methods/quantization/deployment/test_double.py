"""Files in float64: a runtime gives what the simulation gives in float64, whatever its order of sums."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from tests.methods.quantization.deployment.test_lowering import quantized
from vit_ptq_bench.bench.contract.models import CLASSIFIERS, make_images
from vit_ptq_bench.methods import MethodError
from vit_ptq_bench.methods.quantization.deployment.double import (
    FLOAT64,
    MIDDLE,
    InDouble,
    erfcx_polynomial,
    without_convolutions,
)

COMPUTED = ("MatMul", "Gemm", "LayerNormalization", "Softmax", "Exp")


def test_the_error_function_is_right_to_float64():
    x = np.concatenate([np.linspace(-9, 9, 20001), [1e-9, -1e-9, 40.0, -700.0, 1e6]])
    place = (abs(x) - MIDDLE) / (abs(x) + MIDDLE)
    scaled = np.polynomial.polynomial.polyval(place, erfcx_polynomial())
    found = np.sign(x) * (1 - np.exp(-(x**2)) * scaled)
    assert np.abs(found - erf(x)).max() < 2e-14


def test_what_is_in_double_computes_in_float64_and_leaves_the_module_as_it_was():
    module = nn.Linear(3, 2)
    images = torch.rand(4, 3)
    found = InDouble(module)(images)
    expected = images.double() @ module.weight.double().t() + module.bias.double()
    assert module.weight.dtype == torch.float32
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_product_of_columns_is_the_convolution(family):
    model = quantized("minmax", family)
    images = make_images(3)
    with torch.no_grad():
        expected = InDouble(model)(images)
        without_convolutions(model)
        assert torch.allclose(InDouble(model)(images), expected, rtol=0, atol=1e-6)


@pytest.fixture
def onnx_files():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from vit_ptq_bench.methods.quantization.deployment import onnx_files

    return onnx_files


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("repq-vit", "swin"),
        *[(name, "vit") for name in ("rose", "ptq4vit", "pwlq")],
    ],
)
def test_a_runtime_gives_the_same_to_the_last_bits(tmp_path, onnx_files, name, family):
    from vit_ptq_bench.bench.deployment.runtimes import OnnxRuntime

    model = quantized(name, family)
    path = tmp_path / "m.onnx"
    written = onnx_files.write_onnx(model, make_images(1), path, precision=FLOAT64)
    assert written.precision == FLOAT64
    found, own = OnnxRuntime(path, threads=1), InDouble(model)
    for count in (1, 8):
        images = make_images(count)
        with torch.no_grad():
            expected = own(images)
        assert torch.allclose(found(images), expected, rtol=1e-6, atol=1e-6)


def test_weights_stay_integers_and_all_else_is_float64(tmp_path, onnx_files):
    import onnx

    model = quantized("minmax")
    path = tmp_path / "m.onnx"
    onnx_files.write_onnx(model, make_images(1), path, precision=FLOAT64)
    file = onnx.shape_inference.infer_shapes(onnx.load(path))
    kinds = {one.name: one.type.tensor_type.elem_type for one in file.graph.value_info}
    counted = [node.op_type for node in file.graph.node]
    assert counted.count("DequantizeLinear") == len(model.weighted_operations())
    assert "QuantizeLinear" not in counted and "Conv" not in counted
    computed = [kinds.get(n.output[0]) for n in file.graph.node if n.op_type in COMPUTED]
    assert len(computed) >= len(model.operations)
    assert set(computed) == {onnx.TensorProto.DOUBLE}
    layers = model.weighted_operations()
    shapes = {tuple(layer.weight.shape) for layer in layers}
    shapes |= {shape[::-1] for shape in shapes}
    stored = [one.data_type for one in file.graph.initializer if tuple(one.dims) in shapes]
    assert stored == [onnx.TensorProto.UINT4] * len(layers)


def test_another_precision_is_refused(tmp_path, onnx_files):
    with pytest.raises(MethodError, match="precision 'float16': give one of float32, float64"):
        onnx_files.write_onnx(
            quantized("minmax"), make_images(1), tmp_path / "m.onnx", precision="float16"
        )


def test_gelu_by_the_hyperbolic_tangent(tmp_path, onnx_files):
    from vit_ptq_bench.bench.deployment.runtimes import OnnxRuntime

    model, images = quantized("minmax"), make_images(8)
    before = InDouble(model)(images)
    changed = [m for m in model.module.modules() if isinstance(m, nn.GELU)]
    for module in changed:
        module.approximate = "tanh"
    path = tmp_path / "m.onnx"
    onnx_files.write_onnx(model, make_images(1), path, precision=FLOAT64)
    expected = InDouble(model)(images)
    assert changed and not torch.equal(expected, before)
    assert torch.allclose(OnnxRuntime(path, threads=1)(images), expected, rtol=1e-6, atol=1e-6)


def test_what_a_runtime_lacks_in_float64_is_named(tmp_path, onnx_files):
    path = tmp_path / "m.onnx"
    with pytest.raises(MethodError, match="computes Atan, Tan, which ONNX Runtime does not have"):
        onnx_files.write_onnx(quantized("dopq-vit"), make_images(1), path, precision=FLOAT64)
    assert not list(tmp_path.iterdir())
