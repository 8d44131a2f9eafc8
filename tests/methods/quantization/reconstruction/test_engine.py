"""The reconstruction engine: identities of its parts, and that it lowers what it minimises."""

import logging
import shutil
import weakref
from functools import partial

import pytest
import torch

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import OPERAND_ROLES, BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration import activations
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction import engine, loop
from vit_ptq_bench.methods.quantization.reconstruction.losses import (
    Batch,
    BlockError,
    LocalDivergence,
    PredictionDivergence,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableOffset,
    TrainableRounding,
    TrainableStep,
)
from vit_ptq_bench.methods.quantization.reconstruction.units import run_all, units_of
from vit_ptq_bench.methods.quantization.reparameterization import calibrate_reparameterized
from vit_ptq_bench.methods.quantization.search.attention_maps import search_maps

LOSSES = (BlockError(), PredictionDivergence(), LocalDivergence())
FAST = {"iterations": 10, "batch_size": 8}
NAMES = ["brecq", "mgrq", "pd-quant", "qdrop"]


FROM_REPQ = {"start": "repq", "holdout": 0.0}
"""MGRQ as the others begin, on all images."""


def _quantize(name, model, calibration, bits="W4A4", **settings):
    base = FROM_REPQ if name == "mgrq" else {}
    method = METHODS.get(name).create(FAST | base | settings)
    return method.quantize(model, method.bit_table(BitWidth.parse(bits)), calibration)


def _weight(bits=4):
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1), weight.amax(1))
    return weight, quantizer


@torch.no_grad()
def test_segments_are_the_model_and_hold_every_operation_once(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    x = images
    for segment in wrapped.structure.segments:
        x = segment.run(x)
    torch.testing.assert_close(x, tiny(images), rtol=0, atol=1e-5)
    inside = [op for segment in wrapped.structure.segments for op in segment.operations]
    assert inside == wrapped.operations
    blocks = [s.name for s in wrapped.structure.segments if s.kind == "block"]
    assert blocks == wrapped.structure.blocks


@torch.no_grad()
def test_finer_and_coarser_units_are_the_model_too(tiny, images):
    wrapped = wrap_model(tiny, equal_table(BitWidth(4, 4)))
    exact = tiny(images)
    counts = {}
    for granularity in ("half", "block", "stage"):
        units = units_of(wrapped.structure, granularity)
        torch.testing.assert_close(run_all(units, images), exact, rtol=0, atol=1e-5)
        assert [op for unit in units for op in unit.operations] == wrapped.operations
        counts[granularity] = len(units)
    blocks = len(wrapped.structure.blocks)
    assert counts["half"] == counts["block"] + blocks
    stages = {segment.stage for segment in wrapped.structure.segments}
    assert counts["stage"] == 2 + len(stages)  # and embedding and head


def test_soft_rounding_starts_at_the_weight_and_hard_rounding_is_within_a_step():
    weight, quantizer = _weight()
    trained = TrainableRounding(quantizer, weight)
    limits = [quantizer.dequantize(torch.full_like(weight, c).int()) for c in quantizer.code_range]
    inside = torch.clamp(weight, *limits)
    torch.testing.assert_close(trained(weight), inside, rtol=0, atol=1e-5)
    with torch.no_grad():
        trained.alpha.normal_(generator=torch.Generator().manual_seed(1))
    hard = quantizer.dequantize(trained.codes(weight))
    assert ((hard - inside).abs() <= quantizer.scale[:, None] * (1 + 1e-4)).all()


def test_trained_weight_starts_as_plain_rounding_and_passes_gradients():
    weight, quantizer = _weight()
    trained = TrainableOffset(quantizer, weight)
    torch.testing.assert_close(trained(weight), quantizer.fake_quantize(weight))
    trained(weight).sum().backward()
    assert (trained.trained.grad == 1).float().mean() > 0.9  # 0 where the code is clipped
    assert torch.equal(trained.codes(weight), quantizer.quantize(weight))


def test_step_gradient_is_that_of_lsq_and_drop_probabilities_hold():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer(TensorSpec(3), "x")
    quantizer.set_range(x.amin().reshape(1) / 2, x.amax().reshape(1) / 2)
    trained = TrainableStep(quantizer, torch.Generator().manual_seed(0))
    torch.testing.assert_close(trained(x), quantizer.fake_quantize(x))
    trained(x).sum().backward()
    # Esser et al. 2020, equation 3, with a zero point: inside round(x/s) - x/s, outside the code.
    scale, zero, high = quantizer.scale, quantizer.zero_point, 7
    codes = torch.round(x / scale) + zero
    inside = (codes >= 0) & (codes <= high)
    gradient = torch.where(
        inside, torch.round(x / scale) - x / scale, codes.clamp(0, high) - zero
    ).sum()
    expected = gradient / (x.numel() * high) ** 0.5
    torch.testing.assert_close(trained.step.grad, expected.reshape(1), rtol=1e-4, atol=1e-5)
    trained.keep = 0.0
    assert torch.equal(trained(x), x)
    trained.keep = 0.5
    quantized = (trained(x) == quantizer.fake_quantize(x)).float().mean()
    assert 0.35 < quantized < 0.65


def test_prediction_divergence_matches_finite_differences_and_leaves_the_rest_alone(vit, images):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    segments = wrapped.structure.segments
    with torch.no_grad():
        target = segments[1].run(segments[0].run(images))

        def rest(x):
            return run_all(segments[2:], x)

        logits = rest(target)

    def value(output):
        batch = Batch(output=output, target=target, rest=rest, prediction=logits, clean=output)
        return PredictionDivergence()(batch)

    assert abs(float(value(target))) < 1e-6
    generator = torch.Generator().manual_seed(0)
    output = target + 0.3 * torch.randn(target.shape, generator=generator)
    moving = output.clone().requires_grad_()
    value(moving).backward()
    direction = moving.grad / moving.grad.norm()
    slope = float(moving.grad.norm())
    step = 0.1
    with torch.no_grad():
        measured = float(value(output + step * direction) - value(output - step * direction))
    assert slope == pytest.approx(measured / (2 * step), rel=0.02)
    assert all(p.grad is None for p in wrapped.parameters())


def test_local_divergence_is_zero_at_the_target_and_reaches_every_tap():
    generator = torch.Generator().manual_seed(0)
    targets = {
        n: s * torch.randn(2, 5, 8, generator=generator) for n, s in (("a", 1.0), ("b", 1e-3))
    }
    moved = {n: (1.1 * t).requires_grad_() for n, t in targets.items()}

    def value(inner):
        x = torch.zeros(1)
        batch = Batch(x, x, lambda y: y, x, inner=inner, inner_target=targets)
        return LocalDivergence()(batch)

    assert abs(float(value(targets))) < 1e-6
    value(moved).backward()
    # Scaled by the output's own size, a small layer counts as much as a large one.
    sizes = [float((moved[n].grad * targets[n].std()).norm()) for n in targets]
    assert sizes[0] > 0 and 0.2 < sizes[1] / sizes[0] < 5


@pytest.mark.parametrize("name", NAMES)
def test_block_errors_are_lower_after_reconstruction(name, vit, calibration):
    """Each block's output error on all images, with the trained quantizers made hard."""
    before, after = [], []
    plain = _quantize(name, vit, calibration, "W3A3", iterations=0)
    trained = _quantize(
        name, vit, calibration, "W3A3", iterations=60, learn="weights", weight_rate=2e-3
    )
    images = calibration.whole()
    with torch.no_grad():
        exact = wrap_model(vit, equal_table(BitWidth(32, 32))).structure.segments
        for model, found in ((plain, before), (trained, after)):
            x, y = images, images
            for segment, original in zip(model.structure.segments, exact, strict=True):
                x, y = segment.run(x), original.run(y)
                found.append(float((x - y).square().sum(-1).mean()))
    assert after[1] < before[1] and after[2] < before[2]
    assert after[-1] < before[-1]


def test_each_loss_of_mgrq_is_lower_after_reconstruction(vit, calibration):
    """Block, prediction and inner layers, measured anew on each block's full-precision input."""
    images = calibration.whole()
    exact = wrap_model(vit, equal_table(BitWidth(32, 32))).structure.segments
    plain = _quantize("mgrq", vit, calibration, "W3A3", block=False)
    trained = _quantize("mgrq", vit, calibration, "W3A3", iterations=60, weight_rate=2e-3)

    @torch.no_grad()
    def measure(model):
        found, x = [], images
        for index, (segment, original) in enumerate(
            zip(model.structure.segments, exact, strict=True)
        ):
            inner, inner_target = {}, {}
            target = loop._run_watched(original, x, inner_target, 1.0)
            output = loop._run_watched(segment, x, inner, 1.0)
            if segment.kind == "block":
                rest = partial(run_all, exact[index + 1 :])
                batch = Batch(output, target, rest, vit(images), output, inner, inner_target)
                found.append([float(loss(batch)) for loss in LOSSES])
            x = target
        return found

    for before, after in zip(measure(plain), measure(trained), strict=True):
        assert all(b > a for b, a in zip(before, after, strict=True))


def test_without_its_losses_mgrq_is_qdrop(vit, images, calibration):
    off = {"global_weight": 0.0, "local_weight": 0.0}
    bare = _quantize("mgrq", vit, calibration, attention="uniform", **off)
    qdrop = _quantize("qdrop", vit, calibration)
    assert torch.equal(bare(images), qdrop(images))
    full = _quantize("mgrq", vit, calibration, attention="uniform")
    assert not torch.equal(full(images), qdrop(images))
    repq = _quantize("mgrq", vit, calibration, attention="log-sqrt2", block=False)
    reference = METHODS.get("repq-vit").create({})
    table = reference.bit_table(BitWidth(4, 4))
    assert torch.equal(repq(images), reference.quantize(vit, table, calibration)(images))
    words = [METHODS.get("mgrq").create({"block": on}).convention(table) for on in (True, False)]
    assert ["trains" in text for text in words] == [True, False]


@pytest.mark.parametrize("granularity", ["tensor", "head"])
def test_attention_scale_is_the_best_of_its_candidates(granularity, vit, calibration):
    """Against a search from the definition: 128 ranges from zero, plain affine rounding."""
    table = equal_table(BitWidth(3, 3)).change(OPERAND_ROLES, granularity=granularity)
    model = wrap_model(vit, table)
    METHODS.get("repq-vit").create().calibrate(model, calibration)
    product = next(op for op in model.operations if op.role == "context")
    seen = []
    handle = product.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model.activate()
    search_maps(model.operations, lambda: model(calibration.whole()))
    handle.remove()
    attention, values = seen[0]
    exact, values = attention @ values, product.second_quantizer.fake_quantize(values)
    heads = attention.unbind(1) if granularity == "head" else [attention]
    tops = torch.stack([head.max() for head in heads])
    lows = torch.stack([head.min() for head in heads])
    errors = []
    for i in range(1, 129):
        shape = (1, -1, 1, 1)
        top, low = (tops * i / 128).view(shape), (lows * i / 128).clamp(max=0).view(shape)
        step = (top - low) / 7
        zero = (-low / step).round()
        codes = ((attention / step).round() + zero).clamp(0, 7)
        error = ((codes - zero) * step @ values - exact).square().sum((0, 2, 3))
        errors.append(error if granularity == "head" else error.sum()[None])
    best = torch.stack(errors).min(0).values
    chosen = (product.first_quantizer.fake_quantize(attention) @ values - exact).square()
    chosen = chosen.sum((0, 2, 3)) if granularity == "head" else chosen.sum()[None]
    # Coarse to fine may miss the very best of 128, never by much.
    assert (chosen <= 1.02 * best).all()
    start = torch.stack(errors)[-1]
    assert (chosen < 0.95 * start).all()


def test_maps_of_a_given_base_are_left_alone(vit, calibration):
    method = METHODS.get("mgrq").create(FROM_REPQ)
    model = wrap_model(vit, method.bit_table(BitWidth(4, 4)))
    calibrate_reparameterized(model, calibration)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.activate()
    search_maps(model.operations, lambda: model(calibration.whole()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_layers_as_units_lower_the_error_of_each_layer(tiny, images, calibration):
    """On full-precision inputs, the objective of units of one layer without a mix."""
    settings = {"unit": "layer", "weight_rate": 1e-3}
    models = [
        _quantize("brecq", tiny, calibration, "W3A32", iterations=n, **settings) for n in (0, 60)
    ]
    exact = wrap_model(tiny, equal_table(BitWidth(32, 32)))
    inputs = {}
    for op in exact.weighted_operations():
        op.register_forward_hook(lambda op, x, y: inputs.update({op.name: (x[0], y)}))
    with torch.no_grad():
        exact(images)
        errors = [
            [
                float((op(x) - y).square().mean())
                for op in model.weighted_operations()
                for x, y in [inputs[op.name]]
                if op.role not in ("head", "patch_embed")
            ]
            for model in models
        ]
    # Training through the rounding ends between two codes here and there: most layers, and the sum.
    better = [after < before for before, after in zip(*errors, strict=True)]
    assert sum(better) >= 0.7 * len(better)
    assert sum(errors[1]) < 0.8 * sum(errors[0])


@pytest.mark.parametrize("unit", ["half", "block", "stage"])
def test_every_unit_lowers_the_error_of_the_output(unit, tiny, images, calibration):
    def error(iterations):
        model = _quantize(
            "brecq", tiny, calibration, "W3A32", iterations=iterations, unit=unit, weight_rate=2e-3
        )
        with torch.no_grad():
            return float((model(images) - tiny(images)).square().mean())

    assert error(80) < error(0)


def test_importance_is_the_squared_gradient_of_each_image(vit, images):
    wrapped = wrap_model(vit, equal_table(BitWidth(4, 4)))
    segments = wrapped.structure.segments

    def rest(x, chosen=None):
        return run_all(segments[2:], x)

    with torch.no_grad():
        target = run_all(segments[:2], images)
        probabilities = rest(target).softmax(-1)
    found = engine._importance(target, rest, torch.Generator().manual_seed(5), torch.device("cpu"))
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(5))
    squares = []
    for image, label in zip(target, labels.flatten(), strict=True):
        x = image[None].clone().requires_grad_()
        torch.nn.functional.cross_entropy(rest(x), label[None]).backward()
        squares.append(x.grad[0] ** 2)
    expected = torch.stack(squares)
    torch.testing.assert_close(found, expected / expected.mean(), rtol=1e-3, atol=1e-5)


def test_fisher_weighted_brecq_differs_and_is_refused_for_layers(vit, images, calibration):
    plain = _quantize("brecq", vit, calibration)
    fisher = _quantize("brecq", vit, calibration, loss="fisher")
    assert torch.isfinite(fisher(images)).all()
    assert not torch.equal(plain(images), fisher(images))
    for name, settings in (("brecq", {"loss": "fisher"}), ("mgrq", {}), ("pd-quant", {})):
        with pytest.raises(MethodError, match="units of one layer cannot give"):
            _quantize(name, vit, calibration, unit="layer", **settings)


def test_too_few_images_and_bad_settings_are_refused(vit, calibration):
    with pytest.raises(MethodError, match=r"batches of 9 images needs at least .* got 8"):
        _quantize("qdrop", vit, calibration, batch_size=9)
    for settings in ({"iterations": -1}, {"batch_size": 0}):
        with pytest.raises(MethodError, match="must be at least"):
            _quantize("qdrop", vit, calibration, **settings)
        cls = METHODS.get("qdrop")
        method = cls(cls.Parameters(**settings))  # past `create`
        with pytest.raises(MethodError, match="iterations >= 0 and batch_size >= 1"):
            method.quantize(vit, method.bit_table(BitWidth(4, 4)), calibration)


def test_out_of_memory_halves_the_batch_and_goes_on(vit, images, calibration, monkeypatch, caplog):
    sizes = []
    plain = BlockError.__call__

    def scarce(self, batch):
        sizes.append(len(batch.output))
        if len(batch.output) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(BlockError, "__call__", scarce)
    with caplog.at_level(logging.WARNING):
        model = _quantize("qdrop", vit, calibration)
    assert "blocks.0: out of memory; goes on with batches of 4 images" in caplog.text
    assert "blocks.0: out of memory; goes on with batches of 2 images" in caplog.text
    assert set(sizes) == {8, 4, 2} and torch.isfinite(model(images)).all()

    def hopeless(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BlockError, "__call__", hopeless)
    with pytest.raises(torch.OutOfMemoryError):
        _quantize("qdrop", vit, calibration)


def test_caches_on_disk_change_nothing_and_do_not_grow_with_depth(
    vit, images, calibration, monkeypatch, caplog
):
    alive, most = weakref.WeakSet(), []
    allocate = activations.allocate

    def counting(shape, device):
        cache = allocate(shape, device)
        if len(shape) > 2:  # not the logits
            alive.add(cache.untyped_storage())
            most.append(len(alive))
        return cache

    monkeypatch.setattr(activations, "allocate", counting)
    in_memory = _quantize("qdrop", vit, calibration)(images)
    assert max(most) <= activations.COPIES
    monkeypatch.setenv("BENCH_CACHE_GB", "1e-6")
    with caplog.at_level(logging.INFO):
        on_disk = _quantize("qdrop", vit, calibration)(images)
    assert "memory-mapped files" in caplog.text
    assert torch.equal(in_memory, on_disk)


def test_what_the_caches_will_take_is_said_before_anything_is_trained(vit, calibration, caplog):
    """Four activations of the widest unit and the logits, in float32."""
    with caplog.at_level(logging.INFO, logger="vit_ptq_bench.methods"):
        _quantize("brecq", vit, calibration)
    tokens, channels = vit.pos_embed.shape[1:]
    numbers = 4 * tokens * channels + vit.num_classes
    expected = 4 * calibration.n_images * numbers / 1e6
    said = [r.getMessage() for r in caplog.records if "take up to" in r.getMessage()]
    assert said == [f"activations of {calibration.n_images} images take up to {expected:.1f} MB"]


def test_no_room_for_caches_says_how_much_is_needed(vit, calibration, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_GB", "1e-6")
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(MethodError, match="fewer calibration images"):
        _quantize("qdrop", vit, calibration)
    monkeypatch.setenv("BENCH_CACHE_GB", "lots")
    with pytest.raises(MethodError, match="BENCH_CACHE_GB must be a number"):
        _quantize("qdrop", vit, calibration)


def test_profiles_set_what_is_not_set_by_hand():
    cls = METHODS.get("pd-quant")
    paper = cls.create({"profile": "paper", "batch_size": 16}).parameters
    assert (paper.iterations, paper.learn, paper.weight_rate) == (20000, "rounding", 3e-3)
    assert paper.batch_size == 16
    fast = cls.create({}).parameters
    assert fast.iterations < 1000 and fast.profile == "fast"
    with pytest.raises(MethodError, match="profile must be one of fast, paper"):
        cls.create({"profile": "papre"})


def test_progress_names_the_unit(vit, calibration):
    seen = []
    method = METHODS.get("qdrop").create(FAST)
    table = method.bit_table(BitWidth(4, 4))
    method.quantize(vit, table, calibration, lambda done, total, stage="": seen.append(stage))
    assert list(dict.fromkeys(seen)) == ["patch_embed", "blocks.0", "blocks.1", "head", ""]


@pytest.mark.parametrize("learn", ["rounding", "weights"])
def test_a_unit_whose_loss_is_not_finite_keeps_its_calibration(
    learn, vit, images, calibration, monkeypatch, caplog
):
    calls = []

    def broken(self, batch):
        calls.append(1)
        value = (batch.output - batch.target).square().mean()
        return value * float("nan") if len(calls) == 15 else value  # second unit, fifth iteration

    monkeypatch.setattr(BlockError, "__call__", broken)
    with caplog.at_level(logging.WARNING):
        model = _quantize("brecq", vit, calibration, learn=learn, weight_rate=1e-2)
    assert "blocks.0: the loss was not finite in iteration 4" in caplog.text
    assert torch.isfinite(model(images)).all()
    plain = METHODS.get("brecq").create(FAST | {"iterations": 0})
    untouched = plain.quantize(vit, plain.bit_table(BitWidth(4, 4)), calibration)
    assert torch.equal(
        model.module.blocks[0].mlp.fc1.codes, untouched.module.blocks[0].mlp.fc1.codes
    )
    assert not torch.equal(
        model.module.blocks[1].mlp.fc1.codes, untouched.module.blocks[1].mlp.fc1.codes
    )
