"""Other runtimes read the same file, and times are taken in turn."""

import pytest
import torch
from torch import nn

from tests.methods.quantization.deployment.test_lowering import most_alike, quantized
from vit_ptq_bench.bench.contract.models import make_images
from vit_ptq_bench.bench.deployment import runtimes
from vit_ptq_bench.bench.deployment.runtimes import ROUNDS, WARM_UP, Watched, milliseconds
from vit_ptq_bench.bench.errors import BenchError


def test_openvino_reads_the_same_file(tmp_path):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from vit_ptq_bench.bench.deployment.runtimes import OpenVino
    from vit_ptq_bench.methods.quantization.deployment.onnx_files import write_onnx

    model = quantized("minmax", bits="W8A8")
    write_onnx(model, make_images(1), tmp_path / "m.onnx")
    images = make_images(8)
    with torch.no_grad():
        assert most_alike(OpenVino(tmp_path / "m.onnx", 1)(images), model(images))


@pytest.mark.parametrize(("name", "extra"), [("OnnxRuntime", "onnx"), ("OpenVino", "openvino")])
def test_what_a_runtime_cannot_load_or_run_is_one_sentence(tmp_path, name, extra):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    module = "onnxruntime" if extra == "onnx" else extra
    pytest.importorskip(module, reason=f"the extra {extra} is not installed")
    runtime = getattr(runtimes, name)
    helper, path = onnx.helper, tmp_path / "m.onnx"
    sides = {"images": ["batch", 3, 4, 4], "logits": ["batch", 3, 4, 4]}
    ends = [helper.make_tensor_value_info(end, 1, sides[end]) for end in sides]

    def write(operator):
        node = helper.make_node(operator, ["images"], ["logits"])
        graph = helper.make_graph([node], "g", ends[:1], ends[1:])
        opset = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), path)

    write("NoSuchOperator")
    with pytest.raises(
        BenchError, match=r"cannot load .*m\.onnx, so export it in another form \(--op"
    ):
        runtime(path, 1)
    write("Identity")
    assert runtime(path, 1)(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(BenchError, match=r"cannot run .*m\.onnx, so export it .* it says: \w+"):
        runtime(path, 1)(torch.ones(2, 3, 9, 4))


def test_models_take_turns():
    calls = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, images):
            calls.append(self.name)
            return images

    spent = milliseconds({"a": Noted("a"), "b": Noted("b")}, torch.zeros(1))
    assert calls == ["a", "b"] * (ROUNDS + WARM_UP) and set(spent) == {"a", "b"}


def test_predictions_are_noted_in_order():
    watched = Watched(nn.Identity())
    watched(torch.eye(3)[[2, 0]])
    watched(torch.eye(3)[[1]])
    assert watched.predictions == [2, 0, 1]
