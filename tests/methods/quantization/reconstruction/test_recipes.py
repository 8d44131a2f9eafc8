"""Pairs, the whole model, a teacher, held-out images, views, and what is trained besides weights."""

import copy
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ptq_bench.bench.contract.models import sharpened
from vit_ptq_bench.methods import quantization as parts
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.logarithmic import LogQuantizer
from vit_ptq_bench.methods.quantization.reconstruction import engine, holdout
from vit_ptq_bench.methods.quantization.reconstruction.activation_trainables import LogScales, Steps
from vit_ptq_bench.methods.quantization.reconstruction.affine import (
    Biases,
    CodedScales,
    NormAffine,
)
from vit_ptq_bench.methods.quantization.reconstruction.losses import (
    Batch,
    BlockError,
    FeatureError,
    Loss,
)
from vit_ptq_bench.methods.quantization.reconstruction.recipe import Recipe
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableLogScale,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Roundings, Unit, Weights
from vit_ptq_bench.methods.quantization.reconstruction.units import (
    features_in,
    features_of,
    predict_all,
    prediction_in,
    run_whole,
    steps_of,
    units_of,
)
from vit_ptq_bench.methods.quantization.reconstruction.views import with_views

TRAINED = (Weights(2e-3), Steps(1e-3))


def _calibrated(model, calibration, attention="uniform"):
    table = equal_table(BitWidth(3, 3)).change("attention", scheme=attention)
    wrapped = wrap_model(model, table)
    parts.calibrate_reparameterized(wrapped, calibration)
    return wrapped


def _reconstruct(model, calibration, teacher=None, attention="uniform", **settings):
    wrapped = _calibrated(model, calibration, attention)
    recipe = Recipe(**{"trainables": TRAINED, "iterations": 10, "batch_size": 4} | settings)
    parts.reconstruct(wrapped, calibration, recipe, None, teacher and teacher(wrapped))
    wrapped.freeze()
    return wrapped


@torch.no_grad()
def _error(model, original, images):
    return float((model(images) - original(images)).square().mean())


@pytest.fixture(scope="module")
def deeper():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, num_classes=10, patch_size=4, embed_dim=32, depth=4, num_heads=2
    )
    return sharpened(model, seed=1)


def test_pairs_overlap_by_one_and_stay_within_a_resolution(deeper, tiny):
    structure = wrap_model(deeper, equal_table(BitWidth(4, 4))).structure
    steps = steps_of(structure, "pair")
    assert [(step.unit.name, step.finished.name) for step in steps] == [
        ("patch_embed", "patch_embed"),
        ("blocks.0..blocks.1", "blocks.0"),
        ("blocks.1..blocks.2", "blocks.1"),
        ("blocks.2..blocks.3", "blocks.2..blocks.3"),
        ("head", "head"),
    ]
    assert [part.name for part in steps[1].behind[1:]] == ["blocks.2", "blocks.3", "head"]
    structure = wrap_model(tiny, equal_table(BitWidth(4, 4))).structure
    finished = [op for step in steps_of(structure, "pair") for op in step.finished.operations]
    assert finished == structure.operations
    for step in steps_of(structure, "pair"):
        names = [
            part.name
            for part in structure.segments
            if set(part.operations) & set(step.unit.operations)
        ]
        assert len(names) <= 2
        assert len({part.stage for part in structure.segments if part.name in names}) == 1


def test_one_pair_is_the_stage(vit, images, calibration):
    """Two blocks are one pair, and also the stage of a ViT."""
    pair, stage = (_reconstruct(vit, calibration, unit=unit) for unit in ("pair", "stage"))
    assert torch.equal(pair(images), stage(images))


def test_the_second_block_of_a_pair_goes_on_where_it_was(deeper, images, calibration, monkeypatch):
    """What is trained in it stays in place, and the full-precision stream never sees it."""
    seen = []
    attempt = engine.Engine._attempt

    def watched(self, step, exact, *rest):
        before = {place.operation.name: place for _, place in self._open}
        attempt(self, step, exact, *rest)
        after = {place.operation.name for _, place in self._open}
        seen.append(
            (
                set(before),
                after,
                [op.frozen for op in exact.unit.operations if hasattr(op, "codes")],
            )
        )

    monkeypatch.setattr(engine.Engine, "_attempt", watched)
    model = _reconstruct(deeper, calibration, unit="pair")
    for (_, left, _), (taken, _, _) in pairwise(seen):
        assert taken == left
    lefts = [{name.rsplit(".", 2)[0] for name in left} for _, left, _ in seen]
    assert [{name.split(".")[1] for name in left} for left in lefts] == [
        set(),
        {"1"},
        {"2"},
        set(),
        set(),
    ]
    assert not any(any(frozen) for _, _, frozen in seen)
    assert all(op.frozen for op in model.weighted_operations())
    plain = _reconstruct(deeper, calibration, iterations=0)
    assert _error(model, deeper, images) < _error(plain, deeper, images)


@torch.no_grad()
def test_the_whole_model_gives_feature_and_prediction_in_a_row(tiny, images):
    structure = wrap_model(tiny, equal_table(BitWidth(4, 4))).structure
    logits = predict_all(structure, images)
    features = features_of(structure, lambda: predict_all(structure, images))
    row = run_whole(structure, images)
    assert torch.equal(prediction_in(row, logits), logits)
    assert torch.equal(features_in(row, features), features)
    (unit,) = units_of(structure, "model")
    assert list(unit.operations) == structure.operations
    maps = (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2))
    row = torch.cat([part.flatten(1) for part in maps], dim=1)
    assert all(torch.equal(a, b) for a, b in zip(prediction_in(row, maps), maps, strict=True))


def test_the_whole_model_as_one_unit_lowers_the_error(tiny, images, calibration):
    plain = _reconstruct(tiny, calibration, iterations=0)
    whole = _reconstruct(tiny, calibration, unit="model", iterations=60, input_mix=1.0, keep=1.0)
    assert _error(whole, tiny, images) < _error(plain, tiny, images)


def test_a_copy_in_full_precision_teaches_what_the_model_itself_does(tiny, images, calibration):
    losses = (BlockError(), FeatureError(2.0))
    alone = _reconstruct(tiny, calibration, losses=losses)
    taught = _reconstruct(tiny, calibration, teacher=copy.deepcopy, losses=losses)
    assert torch.equal(alone(images), taught(images))


@torch.no_grad()
def test_a_copy_of_a_wrapped_model_runs_the_copy(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    teacher = copy.deepcopy(wrapped)
    for parameter in wrapped.parameters():
        parameter.zero_()
    torch.testing.assert_close(
        predict_all(teacher.structure, images), tiny(images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("trained", [(Weights(30.0), Steps(1.0)), (Roundings(30.0), Steps(1.0))])
def test_units_that_are_no_better_on_held_out_images_keep_their_start(
    trained, vit, images, calibration, monkeypatch
):
    judges = []
    settle = holdout.Judge.settle

    def watched(self):
        judges.append((self, settle(self)))
        return judges[-1][1]

    monkeypatch.setattr(holdout.Judge, "settle", watched)
    settings = {"holdout": 0.25, "trainables": trained, "input_mix": 1.0}
    model = _reconstruct(vit, calibration, **settings)
    assert len(judges) == 4 and all(judge.best <= judge.start for judge, _ in judges)
    assert all(better == (judge.best < judge.start) for judge, better in judges)
    assert sum(better for _, better in judges) <= 1  # such a rate helps nobody
    if not any(better for _, better in judges):
        plain = _reconstruct(vit, calibration, iterations=0)
        assert torch.equal(model(images), plain(images))


def test_a_sound_rate_is_kept_on_held_out_images_and_they_are_not_trained_on(vit, monkeypatch):
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    calibration = Calibration([images], seed=3)
    drawn, judged = set(), set()
    made = engine.Loop._batch_of

    def watched(self, chosen, losses, mix):
        (drawn if torch.is_grad_enabled() else judged).update(chosen.tolist())
        return made(self, chosen, losses, mix)

    monkeypatch.setattr(engine.Loop, "_batch_of", watched)
    model = _reconstruct(vit, calibration, holdout=0.25, iterations=40, crops=1)
    assert len(judged) == 8 and max(judged) < 32
    assert not {number % 32 for number in drawn} & judged and max(drawn) >= 32
    plain = _reconstruct(vit, calibration, iterations=0)
    assert _error(model, vit, images) < _error(plain, vit, images)


@dataclass(frozen=True)
class _Away(Loss):
    """Smaller the further the unit is from its target."""

    def __call__(self, batch: Batch) -> torch.Tensor:
        return 1e3 - (batch.output - batch.target).square().mean()


@pytest.mark.parametrize("attention", ["uniform", "log"])
def test_a_model_that_is_further_from_full_precision_than_its_start_is_the_start_again(
    vit, images, calibration, attention, caplog
):
    caplog.set_level("INFO")
    settings = {"attention": attention, "losses": (_Away(),), "weighting": "plain"}
    trained = _reconstruct(vit, calibration, iterations=30, **settings)
    plain = _reconstruct(vit, calibration, attention=attention, iterations=0)
    assert not torch.equal(trained(images), plain(images))
    judged = _reconstruct(vit, calibration, iterations=30, holdout=0.25, **settings)
    assert "the start is kept" in caplog.text
    state, wanted = judged.state_tensors(), plain.state_tensors()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert torch.equal(judged(images), plain(images))


@torch.no_grad()
def test_the_distance_of_each_image_is_torchs():
    numbers = torch.Generator().manual_seed(1)
    true, mine = torch.randn(2, 5, 7, generator=numbers)
    kl = torch.nn.functional.kl_div(
        mine.log_softmax(1), true.log_softmax(1), reduction="none", log_target=True
    )
    torch.testing.assert_close(holdout.distances(true, mine), kl.sum(1))
    maps = [torch.randn(5, 2, size, size, generator=numbers) for size in (4, 2)]
    off = (maps[0] * 1.1, maps[1] * 0.7)
    expected = torch.full((5,), (0.01 + 0.09) / 2)
    torch.testing.assert_close(holdout.distances(tuple(maps), off), expected)


def test_less_is_clear_beyond_one_standard_error_of_the_difference():
    old = torch.tensor([1.0, 5.0, 9.0, 3.0])
    # Mean 1 and deviation s of four differences: a standard error of s / 2.
    assert holdout.clearly_less(old - torch.tensor([-0.6, 2.6, -0.6, 2.6]), old)
    assert not holdout.clearly_less(old - torch.tensor([-0.8, 2.8, -0.8, 2.8]), old)
    assert not holdout.clearly_less(old, old) and not holdout.clearly_less(old + 1, old)
    assert holdout.clearly_less(old[:1] - 0.1, old[:1])


def test_views_follow_from_the_seed_and_show_the_images(images):
    views = with_views(images, 2, seed=5)
    assert views.shape == (24, 3, 16, 16) and torch.equal(views[:8], images)
    assert torch.equal(views, with_views(images, 2, seed=5))
    assert not torch.equal(views[8:], with_views(images, 2, seed=6)[8:])
    assert not torch.equal(views[8:16], views[16:])
    assert torch.equal(with_views(images, 0, seed=5), images)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    shown = with_views(ramp, 40, seed=0)[1:]
    widths = (shown[..., -1] - shown[..., 0]).mean((1, 2))
    assert (widths < 0).float().mean().sub(0.5).abs() < 0.25  # mirrored
    assert widths.abs().min() > 0.55 and widths.abs().max() < 1.05  # half of the area or more
    torch.testing.assert_close(shown[0, :, 0], shown[0, :, 40])  # rows stay rows


def test_what_cannot_be_done_is_refused_before_any_work(vit, calibration):
    structure = wrap_model(vit, equal_table(BitWidth(4, 4))).structure
    with pytest.raises(MethodError, match="got 6 to train on \\(2 held out\\)"):
        Recipe(batch_size=8, holdout=0.25).check(structure, 8)
    with pytest.raises(MethodError, match="holdout < 1"):
        Recipe(batch_size=1, holdout=1.0).check(structure, 8)
    with pytest.raises(MethodError, match="holdout = 0"):
        Recipe(batch_size=1, holdout=0.5, rule=parts.minmax_rule).check(structure, 8)
    with pytest.raises(MethodError, match="units of one layer cannot give FeatureError"):
        Recipe(batch_size=1, unit="layer", losses=(FeatureError(),)).check(structure, 8)
    structure.tail = lambda taps: ()
    with pytest.raises(MethodError, match="crops are for classifiers"):
        Recipe(batch_size=1, crops=1).check(structure, 8)


@torch.no_grad()
def test_norms_and_biases_are_trained_in_place_and_given_back(tiny, images):
    model = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    segments = model.structure.segments
    x = segments[0].run(images)
    unit = Unit(segments[1], model.structure, x, x, torch.Generator())
    exact = segments[1].run(x)
    places = [place for kind in (NormAffine(), Biases()) for place in kind.attach(unit)]
    assert len(places) == 2 + 4 and all(
        place.operation in unit.segment.operations for place in places
    )
    for parameter in [p for place in places for p in place.parameters()]:
        parameter.add_(0.3)
    moved = segments[1].run(x)
    assert not torch.allclose(moved, exact, atol=1e-2)
    for place in places:
        place.switch(False)
    assert torch.equal(segments[1].run(x), exact)
    for place in places:
        place.detach(accept=True)
    assert torch.equal(segments[1].run(x), moved)
    for place in NormAffine().attach(unit):
        place.parameters()[0].add_(1.0)
        place.detach(accept=False)
    assert torch.equal(segments[1].run(x), moved)


@torch.no_grad()
def test_scales_of_held_codes_are_trained_in_place_and_given_back(tiny, images, calibration):
    model = _calibrated(tiny, calibration)
    segments = model.structure.segments
    x = segments[0].run(images)
    unit = Unit(segments[1], model.structure, x, x, torch.Generator())
    assert CodedScales().attach(unit) == []  # no weight is held as codes yet
    model.freeze()
    model.activate()
    before = {op.name: op.weight.clone() for op in model.weighted_operations()}
    start = segments[1].run(x)
    places = CodedScales().attach(unit)
    assert len(places) == 4
    for parameter in [p for place in places for p in place.parameters()]:
        parameter.add_(0.1)
    moved = segments[1].run(x)
    assert not torch.allclose(moved, start, atol=1e-3)
    for place in places:
        place.switch(False)
    assert torch.equal(segments[1].run(x), start)
    for place in places:
        place.detach(accept=False)
    assert all(torch.equal(op.weight, before[op.name]) for op in model.weighted_operations())
    for place in CodedScales().attach(unit):
        place.parameters()[0].add_(0.1)
        place.detach(accept=True)
        operation = place.operation
        expected = before[operation.name] * torch.tensor(0.1).exp()
        torch.testing.assert_close(operation.weight, expected)
    torch.testing.assert_close(segments[1].run(x), moved)


def test_weights_that_are_codes_already_are_not_trained(tiny, images, calibration):
    model = _calibrated(tiny, calibration)
    model.freeze()
    x = model.structure.segments[0].run(images)
    unit = Unit(model.structure.segments[1], model.structure, x, x, torch.Generator())
    assert Weights().attach(unit) == Roundings().attach(unit) == []


def test_affine_alone_lowers_the_error_and_leaves_the_codes(vit, images, calibration):
    settings = {"trainables": (NormAffine(1e-2), Biases(1e-2)), "input_mix": 1.0, "keep": 1.0}
    trained = _reconstruct(vit, calibration, iterations=30, **settings)
    plain = _reconstruct(vit, calibration, iterations=0)
    assert _error(trained, vit, images) < _error(plain, vit, images)
    for own, other in zip(trained.weighted_operations(), plain.weighted_operations(), strict=True):
        assert torch.equal(own.codes, other.codes)


def test_log_scale_moves_the_levels_and_has_the_gradient_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 50, generator=generator).requires_grad_()
    inner = LogQuantizer(TensorSpec(3, scheme="log2"), "x")
    inner.set_range(torch.zeros(1), torch.full((1,), 0.7))
    trained = TrainableLogScale(inner, generator)
    values = trained(x)
    torch.testing.assert_close(values, inner.fake_quantize(x.detach()))
    values.sum().backward()
    inside = (x <= 0.7).float()
    slope = (values - x * inside).sum() / x.numel() ** 0.5
    torch.testing.assert_close(trained.step.grad, slope.reshape(1).detach())
    assert torch.equal(x.grad, inside)
    with torch.no_grad():
        trained.step.fill_(0.5)
    moved = trained(x.detach())
    assert float(moved.detach().max()) == pytest.approx(0.7 * 2.718281828**0.5, rel=1e-5)
    assert float(trained.finish().scale) == pytest.approx(0.7 * 2.718281828**0.5, rel=1e-5)
    trained.step = None
    assert float(trained.finish().scale) == pytest.approx(0.7)


def test_log_scales_are_trained_before_steps_takes_the_rest(vit, images, calibration):
    trained = (Weights(2e-3), LogScales(1e-2), Steps(1e-3))
    model = _reconstruct(vit, calibration, attention="log-sqrt2", trainables=trained)
    plain = _reconstruct(vit, calibration, attention="log-sqrt2")
    for own, other in zip(model.operations, plain.operations, strict=True):
        if own.role == "context":
            assert not torch.equal(own.first_quantizer.scale, other.first_quantizer.scale)
            assert isinstance(own.first_quantizer, LogQuantizer)
    assert torch.isfinite(model(images)).all()


def test_decay_is_the_share_of_the_output_that_moves(vit, images):
    model = wrap_model(vit, equal_table(BitWidth(4, 4)))
    parts.calibrate_weights(model, parts.minmax_rule)
    segments = model.structure.segments
    with torch.no_grad():
        x = segments[0].run(images)
    place = Weights(1e-3, decay=3.0).attach(
        Unit(segments[1], model.structure, x, x, torch.Generator())
    )[0]
    layer, weight = place.operation, place.operation.weight.detach().clone()
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        segments[1].run(x)
        assert float(place.decay()) == 0
        place.trainable.trained.add_(torch.randn(weight.shape) * 0.1)
    handle.remove()
    moment = seen[0].flatten(0, -2).square().mean(0)
    moved = (place.trainable.trained.detach() - weight).square() * moment
    expected = 3 * moved.sum() / (weight.square() * moment).sum()
    assert float(place.decay()) == pytest.approx(float(expected), rel=1e-4)


def test_strong_decay_holds_the_weights(vit, calibration):
    """Codes that change: fewer the more the way from the start costs."""
    plain = _reconstruct(vit, calibration, iterations=0)
    changed = []
    for decay in (0.0, 1e4):
        model = _reconstruct(vit, calibration, trainables=(Weights(1e-3, decay=decay),))
        pairs = zip(model.weighted_operations(), plain.weighted_operations(), strict=True)
        changed.append(sum(int((a.codes != b.codes).sum()) for a, b in pairs))
    assert changed[1] < 0.7 * changed[0]
