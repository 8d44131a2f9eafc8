"""ONNX files: what stands in them, and that a runtime computes the same from them."""

import pytest
import torch

from tests.methods.quantization.deployment.test_lowering import most_alike, quantized
from tests.methods.test_export import OF_EVERY_FORM
from vit_ptq_bench.bench.contract.models import CLASSIFIERS, build_classifier, make_images
from vit_ptq_bench.methods import MethodError

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from vit_ptq_bench.bench.deployment.runtimes import OnnxRuntime  # noqa: E402
from vit_ptq_bench.methods.quantization.deployment import onnx_files  # noqa: E402

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


@pytest.mark.parametrize("opset", [0, 17, 99])
def test_an_operator_set_that_cannot_be_written_is_refused(tmp_path, opset):
    with pytest.raises(MethodError, match=r"give one of 18 to \d+ \(integers of 4 bits since 21\)"):
        onnx_files.write_onnx(quantized("minmax"), make_images(1), tmp_path / "m.onnx", opset)
    assert not list(tmp_path.iterdir())
