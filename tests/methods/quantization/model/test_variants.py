"""Every family and variant: the original while quantizers are off, and whatever moves scales keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.eva import Eva
from torch import Tensor, nn

from tests.methods.quantization.model.family_models import (
    BUILDERS,
    OF_EACH,
    SMALL,
    images_of,
    small_model,
)
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.families.joined import joined
from vit_ptq_bench.methods.quantization.model.folding import fold_into_reader, fold_into_values
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized
from vit_ptq_bench.methods.quantization.storage import load_quantized, save_quantized
from vit_ptq_bench.methods.quantization.transforms.apply import apply_transforms, transform_problem
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS

TABLE = equal_table(BitWidth(8, 8))
NORMS = TABLE.change("norm.input", bits=8)

KEEPING = [name for name, card in TRANSFORMS.items() if not card.other_operation]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < tolerance, error


def through_segments(model: QuantizedModel, x: Tensor) -> Tensor:
    for segment in model.structure.segments:
        x = segment.run(x)
    return x


def through_halves(model: QuantizedModel, x: Tensor) -> Tensor:
    for segment in model.structure.segments:
        for part in segment.halves or (segment,):
            x = part.run(x)
    return x


def assert_identity(wrapped: QuantizedModel, images: Tensor, expected: Tensor) -> None:
    """Whole, by segments, by their halves, and with each product watched, and so computed by itself."""
    for found in (
        wrapped(images),
        through_segments(wrapped, images),
        through_halves(wrapped, images),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    order: list[str] = []
    for operation in wrapped.operations:
        operation.register_forward_hook(lambda module, *_: order.append(module.name))
    torch.testing.assert_close(wrapped(images), expected, rtol=0, atol=1e-5)
    assert order == [operation.name for operation in wrapped.operations]


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_a_wrapped_model_is_the_original_and_so_are_its_segments(name: str) -> None:
    model, images = small_model(name), images_of(name)
    expected = model(images)
    assert expected.std() > 1e-2
    for table in (TABLE, NORMS):
        assert_identity(wrap_model(model, table), images, expected)


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), low=st.floats(0.05, 1.0))
@torch.no_grad()
def test_scales_and_shifts_move_along_every_link(name: str, seed: int, low: float) -> None:
    model, images = small_model(name), images_of(name, 2)
    wrapped, numbers = wrap_model(model, TABLE), torch.Generator().manual_seed(seed)
    for link in (*wrapped.structure.norm_links, *wrapped.structure.value_links):
        channels = link.reader.weight.shape[1]
        divisor = torch.rand(channels, generator=numbers) + low
        shift = torch.randn(channels, generator=numbers)
        fold = fold_into_reader if link in wrapped.structure.norm_links else fold_into_values
        fold(link, divisor, shift)
    assert_close(wrapped(images), model(images))
    assert_close(through_segments(wrapped, images), model(images))


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_reparameterization_keeps_the_function(name: str) -> None:
    model, images = small_model(name), images_of(name)
    wrapped = wrap_model(model, TABLE)
    calibrate_reparameterized(wrapped, Calibration([images]))
    wrapped.activate(weights=False, activations=False)
    assert_close(wrapped(images), model(images))


@pytest.mark.parametrize("transform", KEEPING)
@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_a_transform_keeps_the_function_or_is_refused_with_a_reason(
    name: str, transform: str
) -> None:
    model, images = small_model(name), images_of(name)
    wrapped = wrap_model(model, TABLE)
    problem = transform_problem(transform, wrapped)
    if problem is not None:
        assert f"leave {transform} out for this model" in problem
        with pytest.raises(MethodError):
            apply_transforms(wrapped, (transform,), Calibration([images]))
    else:
        apply_transforms(wrapped, (transform,), Calibration([images[:2], images[2:]], seed=3))
        before = model.state_dict()
        after = wrapped.state_tensors()
        assert any(k not in before or not torch.equal(after[k], before[k]) for k in after)
    assert_close(wrapped(images), model(images))


@pytest.mark.parametrize("method", ["minmax", "repq-vit", "mgrq", "rose"])
@pytest.mark.parametrize("name", OF_EACH)
@torch.no_grad()
def test_eight_bits_stay_near_full_precision(name: str, method: str) -> None:
    model, images = small_model(name), images_of(name, 8)
    chosen = METHODS.get(method).create(METHODS.get(method).quick)
    table = chosen.bit_table(BitWidth(8, 8))
    if any(gated in name for gated in ("GLU", "EVA-02")) and method in ("mgrq", "rose"):
        assert "goes below it" in (chosen.supports(model, table) or "")
        chosen = METHODS.get(method).create({**METHODS.get(method).quick, "gelu": "uniform"})
        table = chosen.bit_table(BitWidth(8, 8))
    assert chosen.supports(model, table) is None
    quantized = chosen.quantize(model, table, Calibration([images[:5], images[5:]], seed=0))
    error = (quantized(images) - model(images)).square().mean() / model(images).var()
    assert 0 < float(error) < 0.03  # percentiles of few images clip


@pytest.mark.parametrize("name", OF_EACH)
@torch.no_grad()
def test_a_quantized_model_is_saved_and_exported(name: str, tmp_path) -> None:
    model, images = small_model(name), images_of(name)
    method = METHODS.get("repq-vit").create({})
    quantized = method.quantize(model, method.bit_table(BitWidth(4, 4)), Calibration([images]))
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    again = load_quantized(tmp_path / "q.safetensors", BUILDERS[name]().eval())
    assert torch.equal(again(images), quantized(images))
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = torch.export.export(quantized, (images[:3],), dynamic_shapes=(({0: batch},),)).module()
    assert torch.equal(graph(images), quantized(images))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit, SwiGLU", "what its gate multiplies goes below"),
        ("vit, gate last", "what its gate multiplies goes below"),
        ("vit, norms within", r"blocks\.0\.mlp\.norm, a LayerNorm, goes below"),
    ],
)
def test_forms_for_gelu_are_refused_where_other_values_enter_fc2(name: str, why: str) -> None:
    model = small_model(name)
    twin = METHODS.get("ptq4vit").create({})
    table = twin.bit_table(BitWidth(6, 6))
    with pytest.raises(MethodError, match=why):
        wrap_model(model, table)
    assert "'uniform'" in (twin.supports(model, table) or "")
    problem = transform_problem("refit-relu", wrap_model(model, TABLE))
    assert problem is not None and "no MLP with a GELU" in problem


def test_a_joined_layer_gives_what_its_parts_give() -> None:
    parts = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 3)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(joined(parts)(x), expected)
    bare = [nn.Linear(6, 4, bias=False) for _ in range(2)]
    assert joined(bare).bias is None


@pytest.mark.parametrize("transform", ["centre-keys", "rotate-heads", "rotate-heads-random"])
def test_what_mixes_keys_is_refused_where_positions_rotate_them(transform: str) -> None:
    problem = transform_problem(transform, wrap_model(small_model("eva, packed SwiGLU"), TABLE))
    assert problem is not None
    assert "blocks.0.attn rotates queries and keys by their positions behind qkv" in problem
    assert transform_problem(transform, wrap_model(small_model("eva, EVA"), TABLE)) is None


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"use_post_norm": True}, "blocks.0 is a EvaBlockPostNorm"),
        ({"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}, "fewer heads of keys"),
        ({"global_pool": "map"}, "no role is known for attn_pool"),
    ],
)
def test_variants_of_eva_that_are_not_known_are_refused(own: dict[str, Any], why: str) -> None:
    with pytest.raises(MethodError, match=why):
        wrap_model(Eva(**SMALL | own), TABLE)


@torch.no_grad()
def test_rotary_blocks_of_any_size_run_as_a_whole_and_by_themselves_for_their_own() -> None:
    model = small_model("eva, DINOv3")
    wrapped, images = wrap_model(model, TABLE), torch.randn(2, 3, 24, 20)
    torch.testing.assert_close(wrapped(images), model(images), rtol=0, atol=1e-5)
    with pytest.raises(
        MethodError, match=r"for 4 x 4 patches only, not for 30; use images of its own"
    ):
        through_segments(wrapped, images)


def test_the_relative_positions_of_swin_v2_are_a_constant_and_its_norms_no_readers() -> None:
    wrapped = wrap_model(small_model("swinv2, windows of 4"), TABLE)
    names = wrapped.state_tensors()
    assert not [name for name in names if "cpb_mlp" in name]
    assert names["layers.1.blocks.0.attn.position_bias"].shape == (4, 16, 16)
    structure = wrapped.structure
    assert structure.norm_links == [] and len(structure.value_links) == 4
    assert [op.role for op in structure.normed] == ["proj", "fc2"] * 4
    assert not any(structure.writes(op) for op in structure.normed)
    assert len(structure.fixed_streams) == 2
    for transform, why in (("centre-keys", "normalises"), ("rotate-residual", "norms behind")):
        assert why in (transform_problem(transform, wrapped) or "")


@pytest.mark.parametrize("table", [TABLE, NORMS], ids=["plain", "norms quantized"])
def test_halves_of_blocks_with_norms_behind_hold_their_own_operations(table: BitTable) -> None:
    wrapped = wrap_model(small_model("swinv2, windows of 4"), table)
    for segment in wrapped.structure.segments:
        for half, last in zip(segment.halves, ("proj", "fc2"), strict=False):
            roles = [op.role for op in half.operations if op.role != "norm"]
            assert roles[-1] == last and ("fc1" in roles) == (last == "fc2")
            names = [op.name.rpartition(".")[2] for op in half.operations if op.role == "norm"]
            assert names == ([] if table is TABLE else [{"proj": "norm1", "fc2": "norm2"}[last]])


@torch.no_grad()
def test_keys_of_padded_tokens_do_not_own_the_gradients_of_swin_v2() -> None:
    name = "swinv2, windows of 3, padded"
    model, images = small_model(name), images_of(name, 8)
    method = METHODS.get("ptq4vit").create(
        METHODS.get("ptq4vit").quick
    )  # weighs errors by gradients
    quantized = method.quantize(model, method.bit_table(BitWidth(8, 8)), Calibration([images]))
    assert (quantized(images) - model(images)).square().mean() < 0.03 * model(images).var()
