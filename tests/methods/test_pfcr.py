"""PFCR: one granularity is the engine's own reconstruction, and each goes on where the finer one ended."""

import pytest
import torch

from vit_ptq_bench.bench.contract.models import build_classifier
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.model.families import wrap_model

NONE = {"layer_iterations": 0, "half_iterations": 0, "block_iterations": 0, "pair_iterations": 0}
QUICK = {"batch_size": 4, "decay": 0.0, "weight_rate": 2e-3, "step_rate": 1e-3}
STILL = 1e-12
"""A factor on rates with which nothing in float32 moves."""


def _method(**settings):
    return METHODS.get("pfcr").create(NONE | QUICK | settings)


def _quantized(model, calibration, **settings):
    method = _method(**settings)
    return method.quantize(model, method.bit_table(BitWidth(3, 3)), calibration)


def _same(first, second):
    one, other = first.state_tensors(), second.state_tensors()
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("setting", "unit"),
    [
        ("layer_iterations", "layer"),
        ("half_iterations", "half"),
        ("block_iterations", "block"),
        ("pair_iterations", "disjoint-pair"),
    ],
)
def test_one_granularity_is_the_engines_own_reconstruction(setting, unit, vit, calibration):
    quantized = _quantized(vit, calibration, **{setting: 3})
    own = wrap_model(vit, _method().bit_table(BitWidth(3, 3)))
    parts.calibrate_start(own, calibration)
    own.activate()
    parts.search_maps(own.operations, lambda: own(calibration.whole()))
    recipe = parts.Recipe(
        trainables=(parts.Weights(2e-3), parts.LogScales(1e-3), parts.Steps(1e-3)),
        unit=unit,
        iterations=3,
        batch_size=4,
        input_mix=1.0,
        keep=1.0,
    )
    parts.reconstruct(own, calibration, recipe)
    own.freeze()
    assert _same(quantized, own)
    assert not _same(quantized, _quantized(vit, calibration))


@pytest.mark.parametrize("coarser", ["block_iterations", "pair_iterations"])
def test_what_cannot_move_leaves_what_the_finer_granularity_gave(coarser, vit, calibration):
    finer = _quantized(vit, calibration, half_iterations=3)
    both = _quantized(vit, calibration, half_iterations=3, rate_decay=STILL, **{coarser: 2})
    assert _same(finer, both)
    moving = _quantized(vit, calibration, half_iterations=3, **{coarser: 2})
    assert not _same(finer, moving)


def test_rates_fall_from_granularity_to_granularity():
    method = _method(half_iterations=1, block_iterations=1, pair_iterations=1, rate_decay=0.5)
    rates = [[t.rate for t in recipe.trainables] for recipe in method.recipes()]
    assert rates == [[2e-3, 1e-3, 1e-3], [1e-3, 5e-4, 5e-4], [5e-4, 2.5e-4, 2.5e-4]]


def test_coarser_granularities_lower_the_error_that_the_finer_ones_left(images):
    """Of every block's output, on the images that it is trained on, all of them in every batch."""
    model = build_classifier("vit", depth=4)
    calibration = parts.Calibration([images], seed=0)
    rates = {"weight_rate": 3e-4, "step_rate": 1.5e-4, "batch_size": 8}

    @torch.no_grad()
    def error(**settings):
        quantized = _quantized(model, calibration, **rates, **settings)
        exact = wrap_model(model, quantized.table).structure.segments
        x, y, found = images, images, 0.0
        for segment, original in zip(quantized.structure.segments[:-1], exact[:-1], strict=True):
            x, y = segment.run(x), original.run(y)
            found += float((x - y).square().mean())
        return found

    start, halves = error(), error(half_iterations=40)
    coarser = error(half_iterations=40, block_iterations=40, pair_iterations=40)
    assert coarser < 0.95 * halves < 0.9 * start


def test_two_stages_without_training_are_one(vit, calibration):
    still = {"weight_rate": 0.0, "step_rate": 0.0, "half_iterations": 1, "block_iterations": 1}
    for start in ("searched", "repq"):
        one = _quantized(vit, calibration, start=start, **still)
        assert _same(one, _quantized(vit, calibration, start=start, two_stages=True, **still))


def test_the_first_stage_trains_weights_that_are_not_quantized(vit, calibration):
    method = _method(half_iterations=2, block_iterations=1, two_stages=True)
    first = [(r.unit, r.quantize_weights) for r in method.recipes(quantized=False)]
    assert first == [("half", False), ("block", False)]
    settings = {"half_iterations": 2, "block_iterations": 1}
    two = _quantized(vit, calibration, two_stages=True, **settings)
    assert not _same(two, _quantized(vit, calibration, **settings))


def test_stages_that_would_undo_the_closed_form_are_refused(vit, calibration):
    with pytest.raises(MethodError, match="undoes those solved in closed form") as caught:
        _quantized(vit, calibration, two_stages=True, start="closed-form")
    assert caught.value.parameter == "two_stages"


def test_words_name_every_granularity():
    notes = METHODS.get("pfcr").create({"pair_iterations": 0}).notes()
    assert notes[-1] == (
        "trains weights and activation steps, iterations of 8 images: 100 per half, 60 per block"
    )
