"""Saved models give bit-equal outputs, also in a new process, and bad files are refused."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, of_one
from vit_ptq_bench.methods.quantization.model.families.registry import wrap_model
from vit_ptq_bench.methods.quantization.storage import (
    file_sha256,
    load_quantized,
    pack_codes,
    read_metadata,
    read_saved,
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
    table = method.bit_table(BitWidth.parse(bits), protocol)
    if bits == "W3A32" and method_name != "fp32":
        layers = wrap_model(tiny, table).weighted_operations()
        one = next(layer.name for layer in layers if layer.role == "fc2")
        table = table.change(of_one("fc2.weight", one), bits=5)
    quantized = method.quantize(tiny, table, calibration)
    widths = {op.name: op.weight_quantizer.spec.bits for op in quantized.weighted_operations()}
    assert all(widths[key.partition("@")[2]] == spec.bits for key, spec in table.own.items())
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
from vit_ptq_bench.bench.contract.models import build_classifier
folder = Path({str(tmp_path)!r})
torch.set_num_threads({torch.get_num_threads()})
model = load_quantized(folder / "q.safetensors", build_classifier("vit"))
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


def _rewrite(path, change, unsigned=True):
    """Let ``change`` edit tensors and header; ``unsigned``: as release 0.1 wrote files, without a hash."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    if unsigned:
        del header["sha256"]
        header["format"] = "vit-ptq-bench/1"
    change(tensors, header)
    save_file(tensors, path, metadata=header)


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
        load_quantized(saved, build_classifier("deit-distilled"))


@pytest.mark.parametrize("drop", ["module.norm.weight", "weight_quantizer.scale", ".codes"])
def test_missing_tensors_are_refused(saved, vit, drop):
    def change(tensors, header):
        del tensors[next(n for n in tensors if n.endswith(drop.removeprefix("module.")))]

    _rewrite(saved, change)
    with pytest.raises(MethodError):
        load_quantized(saved, vit)


def test_no_flipped_bit_and_no_cut_gives_a_model(saved, vit):
    content = saved.read_bytes()
    generator = random.Random(0)
    for place in generator.sample(range(8 * len(content)), 150):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        saved.write_bytes(damaged)
        with pytest.raises(MethodError):
            load_quantized(saved, vit)
    for size in generator.sample(range(len(content)), 50):
        saved.write_bytes(content[:size])
        with pytest.raises(MethodError):
            load_quantized(saved, vit)


@torch.no_grad()
def test_files_without_a_hash_still_load_and_say_so(saved, vit, images):
    before = read_saved(saved)
    _rewrite(saved, lambda tensors, header: None)
    after = read_saved(saved)
    assert (before.signed, after.signed) == (True, False)
    assert torch.equal(before.build(vit)(images), after.build(vit)(images))


INPUT, WEIGHT = "blocks.0.mlp.fc1.input_quantizer", "blocks.0.mlp.fc1.weight_quantizer"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (f"{INPUT}.scale", torch.nan, r"fc1\.input has scales that are NaN"),
        (f"{INPUT}.scale", torch.inf, r"fc1\.input has scales that are NaN or infinite"),
        (f"{INPUT}.scale", -1.0, r"fc1\.input has scales that are zero or negative"),
        (f"{WEIGHT}.scale", 0.0, r"fc1\.weight has scales that are zero or negative"),
        (f"{WEIGHT}.scale", 3e38, r"fc1\.weight has a range that is not finite"),
        ("blocks.0.mlp.fc1.bias", torch.nan, r"1 tensors hold NaN.*fc1\.bias"),
        ("pos_embed", torch.inf, r"1 tensors hold NaN.*pos_embed"),
    ],
)
def test_values_that_no_calibration_gives_are_refused(saved, vit, name, value, why):
    _rewrite(saved, lambda tensors, header: tensors[name].view(-1)[0].fill_(value))
    with pytest.raises(MethodError, match=why):
        load_quantized(saved, vit)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        (f"{INPUT}.scale", lambda t: t.repeat(7), r"fc1\.input has scales \(7,\)"),
        (f"{WEIGHT}.scale", lambda t: t[:5], r"fc1\.weight has scales \(5,\)"),
        (f"{INPUT}.scale", lambda t: t.half(), r"fc1\.input has scales of type torch.float16"),
        (f"{INPUT}.zero_point", lambda t: t.long(), "zero points of type torch.int64"),
        (f"{INPUT}.zero_point", lambda t: t.repeat(2), r"with zero points \(2,\)"),
        (f"{WEIGHT}.zero_point", lambda t: t + 0.5, "no whole numbers"),
        ("blocks.0.mlp.fc1.bias", lambda t: t.double(), "of another type.*fc1.bias"),
        ("blocks.0.mlp.fc1.weight.codes", lambda t: t[1:], "fc1: 2047 bytes of codes do not fit"),
    ],
)
def test_tensors_of_another_form_are_refused(saved, vit, name, change, why):
    _rewrite(saved, lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()}))
    with pytest.raises(MethodError, match=why):
        load_quantized(saved, vit)


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        ("table", "nothing", "no JSON"),
        ("table", "[" * 100_000, "no JSON"),
        ("table", "[]", "no object"),
        ("table", "{}", "bit table: missing"),
        ("table", '{"qkv.weight": 4}', "'qkv.weight' is no object"),
        ("table", '{"qkv.weight": {"bits": "4"}}', "'bits' .* must be int, not '4'"),
        ("table", '{"qkv.weight": {"bits": true}}', "'bits' .* must be int, not 'True'"),
        ("metadata", '"W4A4"', "no object"),
        ("sha256", "0", "its header has"),
    ],
)
def test_headers_of_another_form_are_refused(saved, vit, key, text, why):
    _rewrite(saved, lambda tensors, header: header.update({key: text}))
    with pytest.raises(MethodError, match=why):
        load_quantized(saved, vit)


def test_an_edited_header_is_refused(saved, vit):
    """The tensors fit a table with other activation bits as well: only the hash tells."""

    def change(tensors, header):
        table = json.loads(header["table"])
        table["fc1.input"]["bits"] = 8
        header["table"] = json.dumps(table)

    _rewrite(saved, change, unsigned=False)
    with pytest.raises(MethodError, match="not those that were saved"):
        load_quantized(saved, vit)


def test_a_method_that_leaves_nonsense_is_told_so(vit, calibration):
    class Broken(METHODS.get("minmax")):
        def calibrate(self, model, calibration, progress=None):
            super().calibrate(model, calibration, progress)
            self.spoil(model)

    method, table = Broken.create({}), Broken.create({}).bit_table(BitWidth(4, 4))
    Broken.spoil = lambda self, model: next(model.sites()).quantizer.scale.neg_()
    with pytest.raises(
        MethodError, match=r"patch_embed\.proj\.input has scales that are zero or neg"
    ):
        method.quantize(vit, table, calibration)
    Broken.spoil = lambda self, model: model.module.norm.bias.data.fill_(torch.nan)
    with pytest.raises(
        MethodError, match=r"1 tensors hold NaN or infinite values: \['norm\.bias'\]"
    ):
        method.quantize(vit, table, calibration)


def test_the_hash_of_a_file_is_that_of_its_bytes(saved):
    assert file_sha256(saved) == hashlib.sha256(saved.read_bytes()).hexdigest()
