"""Two streams, their moments and the least squares made of them, against numpy."""

import numpy as np
import pytest
import timm
import torch

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.level_search import search_levels
from vit_ptq_bench.methods.quantization.error_compensation.moments import (
    ResidualMoments,
    residual_moments,
)
from vit_ptq_bench.methods.quantization.error_compensation.resolve import (
    SCALES,
    Resolve,
    Strength,
    clip_rows,
    cross_validated,
    fit_rows,
    in_cells,
    resolve_layers,
)
from vit_ptq_bench.methods.quantization.error_compensation.solving import ridge_solution
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import (
    GRADIENT_FLOOR,
    TokenWeights,
    visit_streams,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.search.activation_grids import calibrate_grids


def _vit(**options):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_classes=10,
        **options,
    )
    return _shaken(model)


def _swin():
    """Windows of 4 on maps of 9 x 9 and 5 x 5: padded, and shifted in every second block."""
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=36,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
        strict_img_size=False,
    )
    return _shaken(model)


def _shaken(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _images(size, count=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


MODELS = pytest.mark.parametrize(("make", "size"), [(_vit, 32), (_swin, 36)], ids=["vit", "swin"])


def _seen(model, images, **options):
    """What `visit_streams` shows of each layer of a model without quantization."""
    wrapped = wrap_model(model, equal_table(BitWidth.parse("W32A32")))
    seen = {}

    def visit(streams):
        seen[streams.layer.name] = list(streams.batches())

    visit_streams(wrapped, Calibration([images]), visit, **options)
    return seen


@MODELS
def test_without_quantization_both_targets_are_what_the_layer_gives(make, size):
    images = _images(size)
    own, stream = (
        _seen(make(), images, target=target, exact_inputs=True) for target in ("layer", "stream")
    )
    assert list(own) == list(stream)
    for name, batches in stream.items():
        for batch, other in zip(batches, own[name], strict=True):
            torch.testing.assert_close(batch.x, batch.exact)
            counts = batch.weight > 0  # padded tokens of windows lead nowhere
            torch.testing.assert_close(
                batch.target[counts], other.target[counts], rtol=1e-4, atol=1e-4
            )
            assert bool(counts.any())


@pytest.mark.parametrize("fixed", [False, True], ids=["one that can be rotated", "fixed"])
def test_the_target_on_a_stream_with_layer_scales_is_what_the_layer_gives(fixed):
    """A LayerScale stands between layer and stream; where it lets nothing through nothing is asked."""

    def make():
        model = _vit(init_values=0.3, pre_norm=fixed)  # a norm that writes the stream fixes it
        with torch.no_grad():
            model.blocks[1].ls2.gamma[:3] = 0
        return model

    images = _images(32)
    own, stream = (
        _seen(make(), images, target=target, exact_inputs=True) for target in ("layer", "stream")
    )
    for name, batches in stream.items():
        for batch, other in zip(batches, own[name], strict=True):
            silent = 3 if name == "blocks.1.mlp.fc2" else 0
            assert not batch.target[:, :silent].any()
            expected = other.target[:, silent:]
            torch.testing.assert_close(batch.target[:, silent:], expected, rtol=1e-3, atol=1e-3)


@MODELS
def test_every_layer_is_visited_once_in_order(make, size):
    model = make()
    wrapped = wrap_model(model, equal_table(BitWidth.parse("W32A32")))
    names = [layer.name for layer in wrapped.weighted_operations()]
    assert list(_seen(model, _images(size))) == names


def test_rows_know_their_image():
    for batches in _seen(_vit(), _images(32)).values():
        images = torch.cat([batch.image for batch in batches])
        assert torch.equal(images.unique(), torch.arange(8))
        assert len(images.bincount().unique()) == 1


def test_tokens_of_large_norm_count_little_and_those_that_are_read_much():
    seen = _seen(_vit(), _images(32))
    weight = seen["blocks.0.mlp.fc2"][0].weight
    assert weight.std() > 0
    last = seen["blocks.1.mlp.fc1"][0].weight.view(8, -1)
    assert torch.equal(last[:, 0], torch.full((8,), 5.0))
    assert torch.equal(last[:, 1:], torch.ones_like(last[:, 1:]))
    pooled = _seen(_vit(global_pool="avg", class_token=False), _images(32))
    assert bool((pooled["blocks.1.mlp.fc1"][0].weight == 1).all())
    plain = _seen(_vit(), _images(32), weights=TokenWeights(inverse_power=False, read=1.0))
    assert all(bool((b.weight == 1).all()) for batches in plain.values() for b in batches)


@MODELS
def test_gradients_of_the_prediction_weigh_tokens(make, size):
    """Against gradients at hooked outputs of the plain model; same labels, one batch."""
    images, model = _images(size), make()
    plain = _seen(model, images)
    seen = _seen(model, images, weights=TokenWeights(fisher_draws=2))
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y}))
        for name, module in model.named_modules()
        if name in seen
    ]
    logits, generator = model(images), Calibration([images], 0).generator()
    total = dict.fromkeys(outputs, 0.0)
    for _ in range(2):
        labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).squeeze(1)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(outputs.values()), retain_graph=True)
        for name, gradient in zip(outputs, gradients, strict=True):
            total[name] = total[name] + gradient.square() / 2
    for hook in hooks:
        hook.remove()
    assert set(total) == set(seen)
    for name, power in total.items():
        power = power.movedim(1, -1) if power.dim() == 4 and "patch" in name else power
        share = power.mean(-1).flatten() / power.mean()
        factor = torch.cat([b.weight for b in seen[name]])
        factor = factor / torch.cat([b.weight for b in plain[name]]).clamp_min(1e-30)
        counts = factor > 0  # padded tokens of windows have no weight
        torch.testing.assert_close(
            factor[counts],
            (GRADIENT_FLOOR + (1 - GRADIENT_FLOOR) * share)[counts],
            rtol=2e-3,
            atol=1e-4,
        )


@MODELS
def test_moments_are_those_of_all_rows(make, size):
    model, images, folds = make(), _images(size), 3
    wrapped = wrap_model(model, equal_table(BitWidth.parse("W8A4")))
    calibrate_grids(wrapped, Calibration([images]))
    checked = []

    def visit(streams):
        moments = residual_moments(streams, folds)
        rows = list(streams.batches())
        x, t, w = (
            torch.cat([getattr(r, k) for r in rows]).double().numpy()
            for k in ("x", "target", "weight")
        )
        image = torch.cat([r.image for r in rows]).numpy()
        w = w / w.mean()
        e = t - x @ streams.layer.weight.flatten(1).double().numpy().T
        mx, me = (np.average(v, axis=0, weights=w) for v in (x, e))
        np.testing.assert_allclose(moments.mean_x, mx, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean_e, me, rtol=1e-4, atol=1e-5)
        for fold in range(folds):
            own = image % folds == fold
            a, b = x[own] - mx, e[own] - me
            scale = np.abs(a.T @ (w[own, None] * a)).max()
            np.testing.assert_allclose(
                moments.second[fold], a.T @ (w[own, None] * a), rtol=1e-3, atol=1e-4 * scale
            )
            cross = a.T @ (w[own, None] * b)
            np.testing.assert_allclose(
                moments.cross[fold], cross, rtol=1e-3, atol=2e-4 * max(np.abs(cross).max(), 1)
            )
            assert float(moments.residual[fold]) == pytest.approx(
                float((w[own, None] * b * b).sum()), rel=1e-3, abs=1e-4
            )
        checked.append(streams.layer.name)

    visit_streams(wrapped, Calibration([images]), visit)
    assert len(checked) == len(wrapped.weighted_operations())


def _planted(seed=0, images=8, tokens=30, columns=12, outputs=5, noise=3.0):
    """Centred rows of images whose residual is linear in x, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images * tokens, columns)) @ rng.normal(size=(columns, columns))
    e = x @ rng.normal(size=(columns, outputs)) + noise * rng.normal(size=(len(x), outputs))
    return x - x.mean(0), e - e.mean(0), np.repeat(np.arange(images), tokens)


def _moments(x, e, image, folds):
    parts = [(x[image % folds == f], e[image % folds == f]) for f in range(folds)]
    tensors = [
        torch.tensor(np.stack(values))
        for values in (
            [a.T @ a for a, _ in parts],
            [a.T @ b for a, b in parts],
            [(b * b).sum() for _, b in parts],
        )
    ]
    return ResidualMoments(*tensors, torch.zeros(x.shape[1]), torch.zeros(e.shape[1]))


def test_ridge_solution_is_least_squares_on_augmented_rows():
    x, e, image = _planted()
    moments = _moments(x, e, image, 1)
    mean = np.mean(np.diag(x.T @ x))
    augmented = np.vstack([x, np.sqrt(0.3 * mean) * np.eye(12)])
    wanted = np.linalg.lstsq(augmented, np.vstack([e, np.zeros((12, 5))]), rcond=None)[0]
    found = ridge_solution(moments.second[0], moments.cross[0], 0.3)
    np.testing.assert_allclose(found.T, wanted, rtol=1e-8)


@pytest.mark.parametrize("noise", [0.5, 10.0, 60.0])
def test_cross_validation_finds_the_best_of_all_strengths(noise):
    x, e, image = _planted(noise=noise)
    ridges, folds = (0.02, 0.2, 2.0), 4
    found = cross_validated(_moments(x, e, image, folds), ridges)

    def left_over(ridge, share):
        total = 0.0
        for fold in range(folds):
            own = image % folds == fold
            second = x[~own].T @ x[~own]
            second += ridge * np.diag(second).mean() * np.eye(12)
            solution = np.linalg.solve(second, x[~own].T @ e[~own])
            total += ((e[own] - share * x[own] @ solution) ** 2).sum()
        return total / (e * e).sum()

    tried = [(left_over(r, s), r, s) for r in ridges for s in np.linspace(0, 1, 201)]
    best = min(tried)
    assert found.ridge == best[1]
    assert found.share == pytest.approx(best[2], abs=6e-3)
    assert found.remaining == pytest.approx(best[0], abs=1e-4)
    assert found.remaining <= 1


def test_rows_are_clipped_where_the_weighted_error_is_least():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    importance = torch.rand(40, generator=torch.Generator().manual_seed(4))
    quantizer = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    clip_rows(quantizer, weight, importance)
    chosen = ((quantizer.fake_quantize(weight) - weight).square() @ importance).clone()
    low, high = torch.aminmax(weight, dim=1)
    for factor in np.linspace(0.4, 1, 20):
        quantizer.set_range(low * float(factor), high * float(factor))
        error = (quantizer.fake_quantize(weight) - weight).square() @ importance
        assert bool((chosen <= error * (1 + 1e-5)).all())


@MODELS
def test_without_quantization_nothing_changes(make, size):
    model, images = make(), _images(size)
    wrapped = wrap_model(model, equal_table(BitWidth.parse("W32A32")))
    resolve_layers(wrapped, Calibration([images]), Resolve(Strength(0.1)))
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images), model(images), rtol=1e-3, atol=1e-3)


@MODELS
def test_solved_weights_keep_the_stream_nearer_to_full_precision_than_rounded_ones(make, size):
    model, images = make(), _images(size, 16)
    with torch.no_grad():
        exact = model.forward_features(images)

    def error(resolve):
        wrapped = wrap_model(model, equal_table(BitWidth.parse("W4A4")))
        calibration = Calibration([images])
        calibrate_grids(wrapped, calibration)
        weights = TokenWeights(inverse_power=False, read=1.0)
        resolve_layers(wrapped, calibration, resolve, weights=weights)
        wrapped.freeze()
        with torch.no_grad():
            return float((wrapped.module.forward_features(images) - exact).square().mean())

    nearest = error(Resolve(solved="none", columnwise=False))
    rounded = error(Resolve(solved="none"))
    solved = error(Resolve(Strength(0.5)))
    assert solved < rounded < nearest


def test_fewer_images_than_folds_are_refused_before_any_work():
    wrapped = wrap_model(_vit(), equal_table(BitWidth.parse("W4A4")))
    with pytest.raises(MethodError, match="3 calibration images cannot be cut into 4 folds"):
        resolve_layers(wrapped, Calibration([_images(32, 3)]), Resolve())


@pytest.mark.parametrize("solved", ["writers", "all", "none"])
def test_weights_are_solved_where_that_is_asked_for(solved):
    wrapped = wrap_model(_vit(), equal_table(BitWidth.parse("W32A4")))
    calibration = Calibration([_images(32, 8)])
    calibrate_grids(wrapped, calibration)
    before = {op.name: op.weight.clone() for op in wrapped.weighted_operations()}
    resolve_layers(wrapped, calibration, Resolve(Strength(0.5), solved=solved))
    moved = {
        op.role for op in wrapped.weighted_operations() if not op.weight.equal(before[op.name])
    }
    wanted = {"writers": {"proj", "fc2"}, "all": {"qkv", "proj", "fc1", "fc2"}, "none": set()}
    assert moved == wanted[solved]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rows_on_a_table_have_the_scale_of_least_weighted_error(bits):
    """Against every factor on the scale that the search of the table left, in float64."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(6, 40, generator=generator)
    importance = torch.rand(40, generator=generator) ** 4 + 0.01
    quantizer, plain = (
        build_quantizer(TensorSpec(bits, "channel", scheme="codebook"), "w", axis=0)
        for _ in range(2)
    )
    fit_rows(quantizer, weight, importance)
    search_levels(plain, weight)
    assert torch.equal(quantizer.levels, plain.levels)

    def errors(scale):
        values = scale[:, None, None] * plain.levels.double()
        off = (weight.double()[:, :, None] - values).abs().amin(dim=2)
        return off.square() @ importance.double()

    tried = torch.stack([errors(plain.scale.double() * factor) for factor in SCALES])
    torch.testing.assert_close(
        errors(quantizer.scale.double()), tried.amin(dim=0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("form", ["uniform", "codebook"])
def test_a_weight_left_open_keeps_its_code_and_stays_where_it_may(form):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(6, 40, generator=generator)
    quantizer = build_quantizer(TensorSpec(3, "channel", scheme=form), "w", axis=0)
    fit_rows(quantizer, weight, torch.ones(40))
    nearest = quantizer.quantize(weight)
    lowest, highest = quantizer.code_range
    codes = (nearest + torch.randint(-1, 2, weight.shape, generator=generator)).clamp(
        lowest, highest
    )
    opened = in_cells(quantizer, weight, codes.to(torch.int32))
    assert torch.equal(quantizer.quantize(opened), codes.to(torch.int32))
    values = quantizer.dequantize(codes)
    for towards in (-1, 1):
        neighbour = quantizer.dequantize((codes + towards).clamp(lowest, highest))
        inside = neighbour != values
        share = ((opened - values) / (neighbour - values))[inside]
        assert float(share.max()) < 0.2001
    kept = ((weight - values).abs() < 1e-3) & (codes == nearest)
    torch.testing.assert_close(opened[kept], weight[kept])
