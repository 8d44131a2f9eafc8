"""Wrapping: same function with quantizers off, all layers covered, other architectures refused or added."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import timm
import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.model.families import (
    FAMILIES,
    Family,
    find_family,
    register_family,
    registry,
    wrap_model,
)
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation

TABLE = equal_table(BitWidth(4, 4))


@torch.no_grad()
def test_wrapped_model_is_the_original_while_quantizers_are_off(tiny, images):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    wrapped = wrap_model(tiny, TABLE)
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
    # Nothing may change when hooks force the explicit attention products either.
    with_hook = wrapped.operations[2].register_forward_hook(lambda *_: None)
    torch.testing.assert_close(wrapped(images), tiny(images), rtol=0, atol=1e-5)
    with_hook.remove()
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "vit_base_patch32_clip_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_rope_224",
    ],
)
def test_timm_models_by_name(name):
    torch.manual_seed(0)
    same_as_timm(timm.create_model(name, num_classes=7))


@torch.no_grad()
def same_as_timm(model):
    """Wrapped, with quantizers off, the model is what it was, on an image of its own size."""
    model = model.eval()
    size = model.patch_embed.img_size if hasattr(model.patch_embed, "img_size") else None
    images = torch.randn(1, 3, *(size or model.default_cfg["input_size"][1:]))
    torch.testing.assert_close(wrap_model(model, TABLE)(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "has"),
    [
        ("vit_small_patch14_dinov2", {"img_size": 70}, "blocks.0.ls1"),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70}, "reg_token"),
        (
            "vit_base_patch16_sapiens2",
            {"img_size": 64, "num_kv_heads": 12},
            "blocks.0.attn.q_norm.weight",
        ),
        ("vit_small_patch8_224", {}, "patch_embed.proj"),
        ("vit_tiny_patch16_384", {}, "patch_embed.proj"),
        ("vit_wee_patch16_reg1_gap_256", {}, "fc_norm.weight"),
        ("vit_base_patch16_gap_224", {}, "norm.weight"),
    ],
)
def test_timm_models_by_name_two_blocks_deep(name, arguments, has):
    """DINOv2, registers, qk-norm, patches of 8, 384 pixels, average pooling with and without fc_norm."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, depth=2, **arguments)
    parts = {*dict(model.named_modules()), *model.state_dict()}
    assert has in parts
    for (
        parameter
    ) in model.parameters():  # as after training: no LayerScale near 0, no norm that does nothing
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.05)
    same_as_timm(model)


def test_every_layer_has_a_role_and_every_site_a_unique_name(tiny):
    layers = [n for n, m in tiny.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    wrapped = wrap_model(tiny, TABLE)
    assert sorted(
        op.name for op in wrapped.operations if isinstance(op, WeightedOperation)
    ) == sorted(layers)
    names = [site.name for site in wrapped.sites()]
    assert len(set(names)) == len(names)
    assert {op.role for op in wrapped.operations} >= {
        "patch_embed", "qkv", "scores", "context", "proj", "fc1", "fc2", "head",
    }  # fmt: skip


def test_operations_are_listed_in_execution_order(tiny, images):
    wrapped, order = wrap_model(tiny, TABLE), []
    for operation in wrapped.operations:
        operation.register_forward_hook(lambda module, *_: order.append(module.name))
    wrapped(images)
    assert order == [operation.name for operation in wrapped.operations]


def test_norm_links_cover_the_layernorms_that_fold(tiny):
    wrapped = wrap_model(tiny, TABLE)
    readers = {link.reader.role for link in wrapped.structure.norm_links}
    assert readers == (
        {"qkv", "fc1", "reduction"} if "Swin" in type(tiny).__name__ else {"qkv", "fc1"}
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("resnet18", "ResNet"),
        ("vit_base_patch16_siglip_224", "no role is known for attn_pool"),
        ("vit_small_r26_s32_224", "patch_embed is a HybridEmbed"),
        ("swinv2_cr_tiny_224", "SwinTransformerV2Cr"),
        ("vit_srelpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_base_patch16_rpn_224", "blocks.0 is a ResPostBlock"),
    ],
)
def test_other_architectures_are_refused_by_name(name, why):
    model = timm.create_model(name, num_classes=3)
    with pytest.raises(MethodError, match=rf"{why}.*Supported:.* timm ViT and DeiT"):
        wrap_model(model, TABLE)


class ToyNet(nn.Module):
    """A convolution, an MLP and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.patches(x).flatten(2).mean(2)).relu())


class ToyFamily(Family):
    """A family from elsewhere."""

    name = "a-toy"
    description = "toy networks"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return True

    def replace_layers(self) -> None:
        for child, role in (("patches", "patch_embed"), ("hidden", "fc1"), ("head", "head")):
            self.replace(self.model, child, child, role)


@pytest.fixture
def toy_family() -> Iterator[type[Family]]:
    yield register_family(ToyFamily)
    FAMILIES.module_dict.pop("a-toy")


@torch.no_grad()
def test_a_family_from_elsewhere_is_quantized_and_takes_no_model_of_ours(
    toy_family, vit, images, calibration
):
    torch.manual_seed(0)
    model = ToyNet().eval()
    method = METHODS.get("minmax").create({})
    quantized = method.quantize(model, method.bit_table(BitWidth(8, 8)), calibration)
    assert [op.name for op in quantized.weighted_operations()] == ["patches", "hidden", "head"]
    torch.testing.assert_close(quantized(images), model(images), rtol=0.1, atol=0.05)
    assert find_family(model) is ToyFamily
    assert find_family(vit) is FAMILIES.get("timm-vit")


def test_the_order_of_families_does_not_depend_on_who_was_imported_first(toy_family, monkeypatch):
    names = [
        "mmdet-swin",
        "mmdet-vit",
        "timm-beit",
        "timm-eva",
        "timm-swin",
        "timm-swin-v2",
        "timm-vit",
        "a-toy",
    ]
    assert [family.name for family in FAMILIES.in_order()] == names
    monkeypatch.setattr(FAMILIES, "_module_dict", dict(reversed(FAMILIES.module_dict.items())))
    assert [family.name for family in FAMILIES.in_order()] == names


def test_a_family_says_what_it_is_and_takes_no_name_twice():
    with pytest.raises(MethodError, match="'timm-vit' is taken by .*TimmViT"):
        register_family(type("Mine", (ToyFamily,), {"name": "timm-vit"}))
    with pytest.raises(MethodError, match=r"Mine\.name must be lower-case kebab"):
        register_family(type("Mine", (ToyFamily,), {"name": "My Family"}))
    with pytest.raises(MethodError, match=r"Mine\.description must say"):
        register_family(type("Mine", (ToyFamily,), {"description": ""}))


def test_entry_points_are_loaded_and_broken_families_are_named(tmp_path, monkeypatch):
    (tmp_path / "families_here").mkdir()
    (tmp_path / "families_here" / "__init__.py").touch()
    (tmp_path / "families_here" / "broken_one.py").write_text("import nothing_of_that_name")
    (tmp_path / "families_elsewhere.py").write_text("LOADED = 1")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint(name, f"{name}:LOADED", registry.ENTRY_POINTS)
        for name in ("families_missing", "families_elsewhere")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    families = registry.FamilyRegistry("family", "families_here")
    families.add("a-toy", ToyFamily)
    assert families.in_order() == [ToyFamily]
    assert set(families.broken) == {"broken_one", "families_missing"}
    assert "families_elsewhere" in sys.modules

    monkeypatch.setattr(registry, "FAMILIES", families)
    monkeypatch.setattr(ToyFamily, "matches", lambda model: False)
    with pytest.raises(MethodError, match=r"toy networks; broken_one failed: ModuleNotFoundError"):
        find_family(nn.Linear(1, 1))
