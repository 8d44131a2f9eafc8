"""What each transform is there for, which models it refuses, and how they are called by name."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.methods.quantization.model.test_identity import SWIN, VIT
from vit_ptq_bench.bench.contract.models import build_classifier, sharpened
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.transforms import names as transform_names
from vit_ptq_bench.methods.quantization.transforms.apply import (
    _provided,
    apply_transforms,
    transform_problem,
)
from vit_ptq_bench.methods.quantization.transforms.centring import centre_keys
from vit_ptq_bench.methods.quantization.transforms.heads import equalise_heads, rotate_heads
from vit_ptq_bench.methods.quantization.transforms.names import TRANSFORMS, check_transforms
from vit_ptq_bench.methods.quantization.transforms.norms import shift_norms
from vit_ptq_bench.methods.quantization.transforms.residual import rotate_residual

TABLE = equal_table(BitWidth(4, 4))


@pytest.fixture
def wrapped(vit: nn.Module) -> QuantizedModel:
    return wrap_model(vit, TABLE)


@torch.no_grad()
def inputs_of(
    model: QuantizedModel, role: str, images: Tensor, output: bool = False
) -> list[Tensor]:
    """What every operation of a role reads (or gives), as rows."""
    seen: list[Tensor] = []
    hooks = [
        op.register_forward_hook(
            lambda _, inputs, found: seen.append((found if output else inputs[0]).flatten(0, -2))
        )
        for op in model.operations
        if op.role == role
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def kurtosis(x: Tensor) -> float:
    """Fourth moment over squared second: of all entries, 3 for a normal distribution."""
    x = x.double() - x.double().mean()
    return float(x.pow(4).mean() / x.square().mean().square())


@torch.no_grad()
def test_a_rotated_norm_output_has_no_outlying_channel(
    vit: nn.Module, images: Tensor, calibration: Calibration
) -> None:
    vit.patch_embed.proj.bias[3] += 20.0
    for block in vit.blocks:
        block.norm1.weight.fill_(1), block.norm1.bias.fill_(0)
    wrapped = wrap_model(vit, TABLE)
    before = [kurtosis(x) for x in inputs_of(wrapped, "qkv", images)]
    rotate_residual(wrapped, calibration)
    after = [kurtosis(x) for x in inputs_of(wrapped, "qkv", images)]
    assert min(before) > 15 and max(after) < 4, (before, after)


@torch.no_grad()
def test_rotation_leaves_norms_without_scale_and_shift(
    wrapped: QuantizedModel, calibration: Calibration
) -> None:
    rotate_residual(wrapped, calibration)
    norms = [module for module in wrapped.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert all(bool((norm.weight == 1).all()) and not bool(norm.bias.any()) for norm in norms)


@torch.no_grad()
def test_swin_keeps_the_stage_that_a_norm_writes(calibration: Calibration) -> None:
    wrapped = wrap_model(build_classifier("swin"), TABLE)
    assert [stream.stage for stream in wrapped.structure.streams] == [1]
    assert wrapped.structure.fixed_streams == [
        "stage 1: patch_embed.norm writes it, channel by channel"
    ]
    before = {name: value.clone() for name, value in wrapped.state_tensors().items()}
    rotate_residual(wrapped, calibration)
    same = [
        name for name, value in wrapped.state_tensors().items() if torch.equal(value, before[name])
    ]
    assert "layers.0.blocks.0.attn.proj.weight" in same
    assert "layers.1.blocks.0.attn.proj.weight" not in same


@torch.no_grad()
def test_centred_keys_have_mean_zero(
    wrapped: QuantizedModel, images: Tensor, calibration: Calibration
) -> None:
    def largest_mean() -> float:
        width = VIT["embed_dim"]
        keys = [x[:, width : 2 * width] for x in inputs_of(wrapped, "qkv", images, output=True)]
        return max(float(k.mean(dim=0).abs().max()) for k in keys)

    assert largest_mean() > 0.1
    centre_keys(wrapped, calibration)
    assert largest_mean() < 1e-5


@torch.no_grad()
def test_shifted_norms_have_centred_ranges_of_one_width_but_for_the_class_tokens_last(
    wrapped: QuantizedModel, images: Tensor, calibration: Calibration
) -> None:
    first, last = wrapped.structure.norm_links[0], wrapped.structure.norm_links[-1]
    kept = last.norm.weight.clone()
    shift_norms(wrapped, calibration)
    rows = inputs_of(wrapped, "qkv", images)[0].double()
    low, high = torch.quantile(rows, 0.002, dim=0), torch.quantile(rows, 0.998, dim=0)
    torch.testing.assert_close(low, -high, rtol=0, atol=1e-4)
    torch.testing.assert_close(high, high.mean().expand_as(high), rtol=1e-4, atol=0)
    assert first.reader.role == "qkv" and last.reader.role == "fc1"
    assert torch.equal(last.norm.weight, kept)


@torch.no_grad()
def test_equalised_heads_carry_equal_power_but_for_the_class_tokens_last(
    images: Tensor, calibration: Calibration
) -> None:
    settings = VIT | {"class_token": False, "global_pool": "avg"}
    for model, changed in (
        (sharpened(VisionTransformer(img_size=16, **settings), 1), (True, True)),
        (build_classifier("vit"), (True, False)),
    ):
        wrapped = wrap_model(model, TABLE)
        before = [link.reader.weight.clone() for link in wrapped.structure.attention_links]
        equalise_heads(wrapped, calibration)
        links = wrapped.structure.attention_links
        found = [
            not torch.equal(old, link.reader.weight)
            for old, link in zip(before, links, strict=True)
        ]
        assert found == list(changed)
        context = inputs_of(wrapped, "proj", images)[0].double().square().mean(dim=0)
        values = inputs_of(wrapped, "qkv", images, output=True)[0].double()
        power = context + 0.2 * values[:, -len(context) :].square().mean(dim=0)
        torch.testing.assert_close(power, torch.ones_like(power), rtol=0, atol=1e-2)


@torch.no_grad()
def test_a_dead_head_is_no_trouble(
    vit: nn.Module, images: Tensor, calibration: Calibration
) -> None:
    qkv, dim = vit.blocks[0].attn.qkv, VIT["embed_dim"]
    qkv.weight[2 * dim : 2 * dim + 16] = 0
    qkv.bias[2 * dim : 2 * dim + 16] = 0
    expected = vit(images)
    wrapped = wrap_model(vit, TABLE)
    equalise_heads(wrapped, calibration)
    torch.testing.assert_close(wrapped(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_seed_of_the_calibration_decides_the_signs(vit: nn.Module, images: Tensor) -> None:
    def weights(transform: str, seed: int) -> Tensor:
        wrapped = wrap_model(vit, TABLE)
        apply_transforms(wrapped, [transform], Calibration([images], seed=seed))
        return wrapped.structure.attention_links[0].source.weight

    for transform in (name for name in TRANSFORMS if name.startswith("rotate-")):
        assert torch.equal(weights(transform, 1), weights(transform, 1))
        assert not torch.equal(weights(transform, 1), weights(transform, 2))


@torch.no_grad()
def test_transforms_act_in_the_order_given(vit: nn.Module, calibration: Calibration) -> None:
    found = []
    for names in (("rotate-residual", "shift-norms"), ("shift-norms", "rotate-residual")):
        wrapped = wrap_model(vit, TABLE)
        apply_transforms(wrapped, names, calibration)
        found.append(bool((wrapped.structure.norm_links[0].norm.weight == 1).all()))
    assert found == [False, True]


REFUSED = [
    ("rotate-heads", {"qk_norm": True}, "blocks.0.attn normalises queries and keys"),
    ("centre-keys", {"qk_norm": True}, "blocks.0.attn normalises queries and keys"),
    ("rotate-heads", {"scale_attn_norm": True}, "normalises the context"),
    ("equalise-heads", {"scale_attn_norm": True}, "normalises the context"),
    (
        "rotate-heads",
        {"num_heads": 16, "embed_dim": 48},
        "of 2 and 4; .*rotate-heads-random takes any",
    ),
    ("rotate-residual", {"pre_norm": True}, "norm_pre writes it"),
    ("rotate-residual-random", {"embed_norm_layer": "layernorm"}, "patch_embed.norm writes it"),
    ("rotate-residual", {"num_classes": 0}, "no linear layer alone reads its last norm"),
    ("rotate-residual", {"global_pool": "max"}, "no linear layer alone reads its last norm"),
    ("rotate-residual", {"embed_dim": 36 + 14}, "of 48 and 56; .*rotate-residual-random takes any"),
    ("rotate-residual", {"norm_layer": "rmsnorm"}, "blocks.0.norm1 is a RmsNorm, not a LayerNorm"),
    ("shift-norms", {"norm_layer": "rmsnorm"}, "no LayerNorm with a weight"),
]


@pytest.mark.parametrize(("name", "settings", "words"), REFUSED)
def test_a_model_without_what_a_transform_needs_is_refused_before_anything_changes(
    name: str, settings: dict[str, object], words: str, calibration: Calibration
) -> None:
    wrapped = wrap_model(VisionTransformer(img_size=16, **VIT | settings).eval(), TABLE)
    before = {key: value.clone() for key, value in wrapped.state_tensors().items()}
    problem = transform_problem(name, wrapped)
    assert problem is not None and problem.startswith(f"{name}: ")
    with pytest.raises(MethodError, match=words):
        apply_transforms(wrapped, [name], calibration)
    after = wrapped.state_tensors()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_scale_of_zero_before_padded_windows_is_refused(calibration: Calibration) -> None:
    model = SwinTransformer(**SWIN, img_size=16, window_size=3).eval()
    model.layers[1].blocks[0].norm1.weight.data[2] = 0
    with pytest.raises(MethodError, match=r"layers.1.blocks.0.attn.qkv: the LayerNorm before it"):
        rotate_residual(wrap_model(model, TABLE), calibration)


def test_every_name_is_provided_and_described() -> None:
    for name, card in TRANSFORMS.items():
        module = _provided(name).apply
        assert callable(module) and card.description
    modules = {card.module for card in TRANSFORMS.values()}
    package = transform_names.__name__.rpartition(".")[0]
    for module_name in modules:
        module = __import__(f"{package}.{module_name}", fromlist=["PROVIDED"])
        own = {name for name, card in TRANSFORMS.items() if card.module == module_name}
        assert set(module.PROVIDED) == own


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["rotate-head"], "unknown transform 'rotate-head'; did you mean 'rotate-heads'"),
        (["xyz"], "unknown transform 'xyz'; known: centre-keys"),
        (["shift-norms", "shift-norms"], "'shift-norms' stands there twice"),
        ("shift-norms", "must be a list of names; got 'shift-norms'"),
        ([1], "must be a list of names"),
        ({"shift-norms": 1}, "must be a list of names"),
    ],
)
def test_names_that_are_none_are_refused(names: object, words: str) -> None:
    with pytest.raises(MethodError, match=words) as caught:
        check_transforms(names)
    assert caught.value.parameter == "transforms"


def test_rotation_of_heads_spreads_an_outlying_channel(
    vit: nn.Module, images: Tensor, calibration: Calibration
) -> None:
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight[VIT["embed_dim"] + 2] *= 20
    wrapped, width = wrap_model(vit, TABLE), VIT["embed_dim"]
    before = inputs_of(wrapped, "qkv", images, output=True)[0][:, width : 2 * width]
    rotate_heads(wrapped, calibration)
    after = inputs_of(wrapped, "qkv", images, output=True)[0][:, width : 2 * width]
    assert float(after.abs().max()) < 0.5 * float(before.abs().max())
    torch.testing.assert_close(after.square().sum(1), before.square().sum(1), rtol=1e-4, atol=1e-4)
