"""What calibration keeps has a budget, and what cannot fit is refused before it starts."""

import sys
from pathlib import Path

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration import activations, memory
from vit_ptq_bench.methods.quantization.calibration import passes as calibrating
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model


@pytest.mark.parametrize(
    ("name", "what"), [("minmax", "one pass over"), ("easyquant", "recording")]
)
def test_what_cannot_fit_says_so_before_it_starts(name, what, vit, calibration, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    method = METHODS.get(name).create()
    steps = []
    with pytest.raises(MethodError, match=f"{what}.* GB of memory and 0.0 GB are free; use fewer"):
        method.quantize(
            vit, method.bit_table(BitWidth(4, 4)), calibration, lambda *step: steps.append(step)
        )
    assert not steps


def test_need_grows_with_the_images(vit, images, monkeypatch):
    needs = []
    monkeypatch.setattr(memory, "available", lambda device: 0.0)
    monkeypatch.setattr(memory, "require", lambda need, *_: needs.append(need))
    method = METHODS.get("minmax").create()
    for count in (2, 4):
        method.quantize(vit, method.bit_table(BitWidth(4, 4)), Calibration([images[:count]]))
    assert needs[1] == 2 * needs[0] > 0


def test_first_ranges_come_from_a_bounded_number_of_images(images):
    calibration = Calibration([images[:3], images[3:]], seed=5)
    assert calibration.first(100) is calibration
    part = calibration.first(4)
    assert (part.n_images, part.seed) == (4, 5)
    assert torch.equal(part.whole(), images[:4])


@pytest.mark.parametrize(
    ("images", "bytes_each", "expected"),
    [(3, 10**9, 3), (32, 10**9, 4), (32, 10**7, 32), (200, 10**7, 40), (200, 10**6, 128)],
)
def test_images_for_ranges_follow_from_model_and_images_alone(
    vit, monkeypatch, images, bytes_each, expected
):
    monkeypatch.setattr(memory, "largest_activation", lambda model, image: bytes_each)
    model = wrap_model(vit, METHODS.get("minmax").create().bit_table(BitWidth(4, 4)))
    found = []
    for cache in ("6", "0.001"):
        monkeypatch.setenv("BENCH_CACHE_GB", cache)
        found.append(memory.range_images(model, Calibration([torch.zeros(images, 3, 2, 2)])))
    assert found == [expected, expected]


def test_thelargest_activation_is_what_one_image_shows_a_quantizer(vit, images):
    """Of this ViT: the hidden layer of an MLP, or the attention maps."""
    model = wrap_model(vit, METHODS.get("minmax").create().bit_table(BitWidth(4, 4)))
    block, tokens = vit.blocks[0], vit.pos_embed.shape[1]
    hidden, maps = tokens * block.mlp.fc1.out_features, block.attn.num_heads * tokens**2
    largest = memory.largest_activation(model, images[:1])
    assert largest == 4 * max(hidden, maps, images[0].numel())


@pytest.mark.parametrize("name", ["lrquant", "mgrq"])
def test_no_range_of_a_reconstruction_comes_from_more(name, vit, images, monkeypatch):
    monkeypatch.setattr(memory, "LEAST_RANGE_IMAGES", 2)
    monkeypatch.setattr(memory, "RANGE_BYTES", 1)
    seen = []
    plain = calibrating.calibrate_sites

    def watched(sites, run, rule, *args, **named):
        def watching(site, x):
            seen.append((site.name, len(x)))
            rule(site, x)

        plain(sites, run, watching, *args, **named)

    for module in (
        "calibration.passes",
        "reconstruction.engine",
        "reconstruction.activation_trainables",
    ):
        monkeypatch.setattr(f"vit_ptq_bench.methods.quantization.{module}.calibrate_sites", watched)
    method = METHODS.get(name).create({"iterations": 2, "batch_size": 2})
    method.quantize(vit, method.bit_table(BitWidth(4, 4)), Calibration([images]))
    assert seen and {count for _, count in seen} == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_caches_on_disk_do_not_stay_in_memory(monkeypatch):
    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssFile:")))

    monkeypatch.setenv("BENCH_CACHE_GB", "1e-6")
    x = torch.randn(512, 64, 1024)
    device, before = torch.device("cpu"), resident()
    cache = activations.send_through(lambda part: part + 1, x, device)
    chosen = torch.arange(0, 512, 2)
    assert torch.equal(activations.take(cache, chosen, device), x[chosen] + 1)
    assert resident() - before < x.numel() * 4 / 4
    assert torch.equal(cache, x + 1)
