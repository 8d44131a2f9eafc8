"""Methods that choose bits: with nothing to choose they are what they are built on, to the bit."""

import pytest
import torch
from torch import nn

from vit_ptq_bench.methods import hmptq, q_limit
from vit_ptq_bench.methods.api.method import Method
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.allocation.sites import mean_bits, site_sizes
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

BITS = BitWidth(4, 4)


def quantized(method: Method, model: nn.Module, calibration: Calibration) -> QuantizedModel:
    return method.quantize(model, method.bit_table(BITS), calibration)


def create(name: str, **settings: object) -> Method:
    cls = METHODS.get(name)
    return cls.create(dict(cls.quick) | settings)


@pytest.mark.parametrize(
    "name, settings, base",
    [
        ("qfem", {"share": 0.0}, "repq-vit"),
        ("qfem", {"at_least": 1e6}, "repq-vit"),
        ("qfem", {"kept_bits": 4}, "repq-vit"),
        ("hmptq", {"regions": "one"}, "repq-vit"),
        ("arcq", {"share": 0.0}, "repq-vit"),
        ("q-limit", {}, "qdrop"),
    ],
)
def test_with_one_width_it_is_its_base(
    name: str,
    settings: dict[str, object],
    base: str,
    vit: nn.Module,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(q_limit, "WIDTHS", (4,))
    monkeypatch.setattr(hmptq, "WIDTHS", (4,))
    own = quantized(create(name, **settings), vit, calibration)
    plain = quantized(create(base), vit, calibration)
    assert not own.table.own
    images = calibration.whole()
    assert torch.equal(own(images), plain(images))


@pytest.mark.parametrize("name", ["hmptq", "q-limit"])
def test_the_budget_is_kept(name: str, tiny: nn.Module, calibration: Calibration) -> None:
    method = create(name)
    model = quantized(method, tiny, calibration)
    means = mean_bits(model, site_sizes(model, calibration))
    assert (
        model.table.own or name == "q-limit"
    )  # two or eight bits may be worse than four everywhere
    assert 3.5 < means["weight"] <= 4 and 3.5 < means["activation"] <= 4
    weights = {spec.bits for key, spec in model.table.own.items() if ".weight@" in key}
    assert weights <= ({2, 8} if name == "q-limit" else {2, 3, 6, 8})
    assert name == "hmptq" or means["activation"] == 4


def test_qfem_keeps_the_inputs_of_largest_ratio(tiny: nn.Module, calibration: Calibration) -> None:
    method = create("qfem", share=0.3, at_least=1.0)
    model = quantized(method, tiny, calibration)
    layers = [op for op in model.weighted_operations() if op.role != "patch_embed"]
    kept = model.table.own
    assert len(kept) == int(0.3 * len(layers))
    assert all(spec.bits == 8 and ".input@" in key for key, spec in kept.items())
    sizes = site_sizes(model, calibration)
    assert mean_bits(model, sizes)["activation"] > 4 == mean_bits(model, sizes)["weight"]


def test_arcq_compensates_layers_within_its_share(
    tiny: nn.Module, calibration: Calibration
) -> None:
    method = create("arcq")
    model = quantized(method, tiny, calibration)
    layers = {op.name: op.weight.numel() for op in model.weighted_operations()}
    entries = model.table.own
    chosen = {key.split("@")[1] for key in entries if ".weight@" in key}
    assert chosen and sum(layers[name] for name in chosen) <= 0.25 * sum(layers.values())
    assert all((spec.bits, spec.scheme) == (8, "uniform-remainder-4") for spec in entries.values())
    means = mean_bits(model, site_sizes(model, calibration))
    assert 4 < means["weight"] <= 5


def test_arcq_with_all_layers_compensated_is_nearer(
    tiny: nn.Module, calibration: Calibration
) -> None:
    images = calibration.whole()
    methods = create("arcq", share=1.0), create("repq-vit")
    with torch.no_grad():
        exact = tiny(images)
        found = [quantized(method, tiny, calibration)(images) for method in methods]
    errors = [float((one - exact).square().mean()) for one in found]
    assert errors[0] < 0.6 * errors[1]
