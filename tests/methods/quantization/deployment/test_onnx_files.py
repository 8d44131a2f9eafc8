"""ONNX files: what stands in them, and that a runtime computes the same from them."""

from types import SimpleNamespace

import pytest
import torch

from tests.methods.quantization.deployment.test_lowering import most_alike, quantized
from tests.methods.test_export import OF_EVERY_FORM
from vit_ptq_bench.bench.contract.models import CLASSIFIERS, build_classifier, make_images
from vit_ptq_bench.methods import MethodError

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from vit_ptq_bench.bench.deployment.exporting import told  # noqa: E402
from vit_ptq_bench.bench.deployment.runtimes import OnnxRuntime  # noqa: E402
from vit_ptq_bench.methods.quantization.bits import TensorSpec  # noqa: E402
from vit_ptq_bench.methods.quantization.deployment import onnx_files  # noqa: E402
from vit_ptq_bench.methods.quantization.deployment.integers import integer_grid  # noqa: E402
from vit_ptq_bench.methods.quantization.deployment.lowering import OperatorQuantizer  # noqa: E402
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer  # noqa: E402

UINT4, UINT8 = onnx.TensorProto.UINT4, onnx.TensorProto.UINT8


def run(path, images):
    return OnnxRuntime(path, threads=1)(images)


def types_of(path):
    """Name -> type of the integers with a dimension for inputs and one for outputs: the weights."""
    graph = onnx.load(path).graph
    return {
        one.name: one.data_type
        for one in graph.initializer
        if one.data_type in (UINT4, UINT8) and len(one.dims) >= 2
    }


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("name", ["minmax", "repq-vit", "ptq4vit"])
def test_a_runtime_computes_the_same_for_any_number_of_images(tmp_path, family, name):
    model = quantized(name, family)
    written = onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(written.path), full_check=True)
    for count in (1, 8):
        images = make_images(count)
        with torch.no_grad():
            assert most_alike(run(written.path, images), model(images))
    assert written.size == (tmp_path / "m.onnx").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("name", OF_EVERY_FORM)
def test_a_runtime_computes_what_any_method_has_made(tmp_path, name):
    model = quantized(name, protocol="authors")  # which has forms with a scale per head too
    onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx")
    images = make_images(8)
    with torch.no_grad():
        assert most_alike(run(tmp_path / "m.onnx", images), model(images))


@pytest.mark.parametrize(
    ("bits", "opset", "packed", "kind"),
    [
        ("W4A4", 21, False, UINT4),
        ("W3A8", 21, False, UINT4),
        ("W4A4", 21, True, UINT8),
        ("W4A4", 18, False, UINT8),
        ("W8A8", 21, False, UINT8),
    ],
)
def test_weights_are_integers_of_the_narrowest_type(tmp_path, bits, opset, packed, kind):
    model = quantized("minmax", bits=bits)
    onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx", opset, packed)
    file = onnx.load(tmp_path / "m.onnx")
    assert {one.domain: one.version for one in file.opset_import} == {"": opset}
    stored = types_of(tmp_path / "m.onnx")
    assert set(stored.values()) == {kind} and len(stored) == len(model.weighted_operations())
    images = make_images(8)
    with torch.no_grad():
        assert most_alike(run(tmp_path / "m.onnx", images), model(images))


def test_every_product_stands_between_operators(tmp_path):
    model = quantized("minmax", bits="W8A8")
    onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Conv", "Gemm")]
    assert len(products) == len(model.operations)
    through = {"Transpose"}
    for node in products:
        for name in node.input[:2]:
            while made_by[name] in through:
                (name,) = next(one.input for one in graph.node if name in one.output)
            assert made_by[name] == "DequantizeLinear"


def test_forms_without_an_operator_are_computed(tmp_path):
    written = onnx_files.write_onnx(quantized("ptq4vit"), make_images(1), tmp_path / "m.onnx")
    reasons = {site.key: site.reason for site in written.sites if site.integers is None}
    assert set(reasons) == {"attention", "fc2.input"} and "'twin-gelu'" in reasons["fc2.input"]


def test_full_precision_is_the_model_itself(tmp_path):
    model = build_classifier("vit")
    onnx_files.write_float_onnx(model, make_images(1), tmp_path / "m.onnx")
    images = make_images(8)
    with torch.no_grad():
        assert torch.allclose(run(tmp_path / "m.onnx", images), model(images), atol=1e-4)


BEYOND = {
    "below": ([3.0], [4.0]),
    "above": ([-4.0], [-3.0]),
    "of three channels": ([3.0, -1.0, -40.0], [4.0, 2.0, -39.0]),
}
"""Ranges, most without 0: their zero points lie outside 0..255."""


@pytest.mark.parametrize("place", BEYOND)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_outside_the_codes_is_run_with_the_same_codes(tmp_path, place, bits):
    low, high = (torch.tensor(ends) for ends in BEYOND[place])
    quantizer = UniformQuantizer(TensorSpec(bits), "site", 1)
    quantizer.set_parameters((high - low) / (2**bits - 1), (-low * (2**bits - 1)).round())
    quantizer.active = True
    grid = integer_grid(quantizer, ("uint8", "uint16"))
    if bits == 8:
        assert grid.integers == "uint16" and grid.clips
    onnx_files.write_float_onnx(
        OperatorQuantizer(quantizer, grid), torch.zeros(1, 3, 4, 600), tmp_path / "m.onnx"
    )
    s, z = (values.float().view(-1, 1, 1) for values in (quantizer.scale, quantizer.zero_point))
    # From far below the lowest code to far above the highest; no value is half-way between two.
    steps = torch.arange(-100, 500).view(1, 1, 1, -1) - z
    images = torch.cat([(steps + off) * s for off in (-0.4, 0.0, 0.1, 0.4)], dim=2)
    images = images.expand(2, 3, -1, -1).contiguous()
    images[1, :, 0, :2] = torch.tensor([-1e6, 1e6])
    expected = quantizer(images)
    assert len(expected[:, 0].unique()) == 2**bits
    assert torch.equal(run(tmp_path / "m.onnx", images), expected)


def with_wide_zero_points():
    """A model whose inputs of qkv and fc2 lie on grids without 0, no two with the same zero point."""
    model = quantized("minmax", bits="W8A8")
    for number, operation in enumerate(model.weighted_operations()):
        low, high = torch.tensor([0.25 + number / 100]), torch.tensor([1.5])
        start = -high if operation.role == "fc2" else low
        if operation.role in ("qkv", "fc2"):
            scale = (high - low) / 255
            operation.input_quantizer.set_parameters(scale, (-start / scale).round())
            operation.input_quantizer.settle()  # as a frozen model's
    return model


def test_a_model_with_zero_points_of_16_bits_is_run(tmp_path):
    model = with_wide_zero_points()
    written = onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx")
    wide = {site.key for site in written.sites if site.integers == "uint16"}
    assert wide == {"qkv.input", "fc2.input"}
    images = make_images(8)
    with torch.no_grad():
        assert most_alike(run(tmp_path / "m.onnx", images), model(images))


def test_sites_whose_zero_points_an_operator_set_does_not_hold_are_told_by_role(tmp_path):
    model = with_wide_zero_points()
    written = onnx_files.write_onnx(model, make_images(1), tmp_path / "m.onnx", opset=18)
    lines = list(told(written, SimpleNamespace(is_detector=False)))
    blocks = sum(operation.role == "qkv" for operation in model.weighted_operations())
    why = "its zero points do not fit uint8; the nearest with an operator: a range that holds 0"
    assert blocks > 1 and lines[2:] == [
        *(
            f"{key} ({blocks} sites, uniform, 8 bit) computed in floating point: {why}"
            for key in ("qkv.input", "fc2.input")
        ),
        "operator set 21 has integers of 16 bits for zero points of activations: --opset 21",
    ]
    images = make_images(8)
    with torch.no_grad():
        assert most_alike(run(tmp_path / "m.onnx", images), model(images))


@pytest.mark.parametrize("opset", [0, 17, 99])
def test_an_operator_set_that_cannot_be_written_is_refused(tmp_path, opset):
    with pytest.raises(MethodError, match=r"give one of 18 to \d+ \(integers of 4 bits since 21\)"):
        onnx_files.write_onnx(quantized("minmax"), make_images(1), tmp_path / "m.onnx", opset)
    assert not list(tmp_path.iterdir())
