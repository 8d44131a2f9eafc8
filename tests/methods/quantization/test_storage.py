"""Saved models give bit-equal outputs, also in a new process, and bad files are refused."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.methods.conftest import build_tiny
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.storage import (
    load_quantized,
    pack_codes,
    read_metadata,
    save_quantized,
    unpack_codes,
)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), n=st.integers(1, 300), seed=st.integers(0, 999))
def test_packing_is_lossless_and_tight(bits, n, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n,), generator=generator).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.numel() == (n * bits + 7) // 8
    assert torch.equal(unpack_codes(packed, bits, codes.shape), codes)


@pytest.mark.parametrize("method_name", list(METHODS.module_dict))
@pytest.mark.parametrize("bits", ["W4A4", "W3A32"])
@torch.no_grad()
def test_reloaded_model_is_bit_equal(method_name, bits, tiny, images, calibration, tmp_path):
    cls = METHODS.get(method_name)
    method = cls.create(cls.quick)
    protocol = "authors" if bits == "W4A4" else "equal"
    quantized = method.quantize(tiny, method.bit_table(BitWidth.parse(bits), protocol), calibration)
    size = save_quantized(quantized, tmp_path / "q.safetensors", {"model": "tiny"})
    assert size == (tmp_path / "q.safetensors").stat().st_size
    again = load_quantized(tmp_path / "q.safetensors", tiny)
    assert torch.equal(again(images), quantized(images))
    assert read_metadata(tmp_path / "q.safetensors") == {"model": "tiny"}


@torch.no_grad()
def test_new_process_gives_the_same_bits(vit, images, calibration, tmp_path):
    method = METHODS.get("repq-vit").create({})
    quantized = method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    torch.save(images, tmp_path / "images.pt")
    program = f"""
import torch
from pathlib import Path
from vit_ptq_bench.methods.quantization import load_quantized
from tests.methods.conftest import build_tiny
folder = Path({str(tmp_path)!r})
torch.set_num_threads({torch.get_num_threads()})
model = load_quantized(folder / "q.safetensors", build_tiny("vit"))
images = torch.load(folder / "images.pt", weights_only=True)
with torch.no_grad():
    torch.save(model(images), folder / "output.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert torch.equal(torch.load(tmp_path / "output.pt", weights_only=True), quantized(images))


def test_size_follows_the_bits(vit, calibration, tmp_path):
    sizes = {}
    for bits in ("W2A8", "W4A8", "W8A8"):
        method = METHODS.get("minmax").create({})
        quantized = method.quantize(vit, method.bit_table(BitWidth.parse(bits)), calibration)
        sizes[bits] = save_quantized(quantized, tmp_path / bits, {})
    weights = sum(op.weight.numel() for op in quantized.weighted_operations())
    assert abs((sizes["W8A8"] - sizes["W4A8"]) - weights / 2) < 64
    assert abs((sizes["W4A8"] - sizes["W2A8"]) - weights / 4) < 64


@pytest.fixture
def saved(vit, calibration, tmp_path):
    method = METHODS.get("minmax").create({})
    path = tmp_path / "q.safetensors"
    save_quantized(method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration), path, {})
    return path


def test_damaged_files_are_refused(saved, vit, tmp_path):
    with pytest.raises(MethodError, match="no such file"):
        load_quantized(tmp_path / "none", vit)
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(MethodError, match="not a readable safetensors file"):
        load_quantized(saved, vit)
    save_file({"a": torch.zeros(1)}, saved)
    with pytest.raises(MethodError, match="not a quantized model"):
        load_quantized(saved, vit)


def test_another_architecture_is_refused(saved):
    with pytest.raises(MethodError, match="does not fit"):
        load_quantized(saved, build_tiny("deit-distilled"))


@pytest.mark.parametrize("drop", ["module.norm.weight", "weight_quantizer.scale", ".codes"])
def test_missing_tensors_are_refused(saved, vit, drop):
    with safe_open(saved, "pt") as file:
        header = file.metadata()
    tensors = load_file(saved)
    name = next(n for n in tensors if n.endswith(drop.removeprefix("module.")))
    del tensors[name]
    save_file(tensors, saved, metadata=header)
    with pytest.raises(MethodError):
        load_quantized(saved, vit)
