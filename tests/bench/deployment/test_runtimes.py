"""Other runtimes read the same file, and times are taken in turn."""

import pytest
import torch
from torch import nn

from tests.methods.quantization.deployment.test_lowering import most_alike, quantized
from vit_ptq_bench.bench.contract.models import make_images
from vit_ptq_bench.bench.deployment.runtimes import ROUNDS, WARM_UP, Watched, milliseconds


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
