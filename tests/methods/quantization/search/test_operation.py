"""The scale search against brute force written from its definition."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.gradients import (
    fisher_loss,
    self_divergence_loss,
)
from vit_ptq_bench.methods.quantization.calibration.recording import (
    Recording,
    gathered,
    record_operations,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.search.candidates import Candidates, Grid, best_index
from vit_ptq_bench.methods.quantization.search.operation import search_operation
from vit_ptq_bench.methods.quantization.search.scores import (
    CosineMetric,
    DirectScore,
    FisherMetric,
    GramCosine,
    Operand,
    by_row,
    heaviest,
    likeness,
    sum_by_group,
)

TABLE = equal_table(BitWidth(4, 4))
FISHER, COSINE = FisherMetric(), CosineMetric()


def _recordings(model, calibration, **options):
    wrapped = wrap_model(model, TABLE)
    return {
        op.name: (op, recording)
        for op, recording in record_operations(wrapped, calibration, **options)
    }


def test_recordings_hold_what_the_model_computed(tiny, calibration, images):
    for operation, recording in _recordings(tiny, calibration, batch_size=3).values():
        assert recording.squared_gradient is None
        torch.testing.assert_close(
            operation.compute(*operation.operands(recording.inputs)),
            recording.output,
            rtol=1e-4,
            atol=1e-4,
        )
    head = next(r for op, r in _recordings(tiny, calibration).values() if op.role == "head")
    if type(tiny).__name__ == "VisionTransformer":
        torch.testing.assert_close(head.output, tiny(images), rtol=1e-4, atol=1e-4)


def test_grouping_by_memory_changes_nothing(vit, calibration, monkeypatch):
    options = {"loss": fisher_loss, "draws": 2, "batch_size": 4}
    together = _recordings(vit, calibration, **options)
    monkeypatch.setenv("BENCH_CACHE_GB", "1e-9")
    apart = _recordings(vit, calibration, **options)
    for name, (_, recording) in together.items():
        assert torch.equal(recording.squared_gradient, apart[name][1].squared_gradient)
        assert torch.equal(recording.output, apart[name][1].output)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    rows=st.lists(st.integers(0, 7), min_size=5, max_size=5),
)
def test_rows_are_gathered_in_order_however_many_an_image_has(sizes, rows):
    """``rows`` per image of each batch: those of proposals differ, those of tokens do not."""
    parts = [torch.randn(size * per, 3) for size, per in zip(sizes, rows, strict=False)]
    fixed = [torch.randn(size * 4, 2, 2) for size in sizes]
    batches = (
        (size, {"proposals": part, "tokens": tokens})
        for size, part, tokens in zip(sizes, parts, fixed, strict=True)
    )
    found = gathered(batches, sum(sizes))
    assert torch.equal(found["proposals"], torch.cat(parts))
    assert torch.equal(found["tokens"], torch.cat(fixed))


def test_gathered_images_lie_as_before():
    images = torch.randn(5, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    for x in (images, images.contiguous()):
        batches = ((len(part), {"x": part}) for part in x.split(2))
        found = gathered(batches, 5)["x"]
        assert torch.equal(found, x) and found.stride() == x.stride()


def test_fisher_gradient_at_the_head_is_the_softmax_covariance(vit, calibration):
    """At the logits E[g g^T] = diag(p) - p p^T, so the mean squared gradient tends to p (1 - p)."""
    _, recording = _recordings(vit, calibration, loss=fisher_loss, draws=3000)["head"]
    p = recording.output.softmax(-1)
    torch.testing.assert_close(recording.squared_gradient, p * (1 - p), rtol=0, atol=0.03)


def test_self_divergence_gradient_is_only_rounding_noise(vit, calibration):
    fisher = _recordings(vit, calibration, loss=fisher_loss)["blocks.0.mlp.fc1"][1].squared_gradient
    noise = _recordings(vit, calibration, loss=self_divergence_loss)["blocks.0.mlp.fc1"][
        1
    ].squared_gradient
    assert noise.mean() < 1e-6 * fisher.mean()


def test_a_loss_without_gradient_is_an_error(vit, calibration):
    with pytest.raises(MethodError, match="no gradient"):
        _recordings(vit, calibration, loss=lambda logits, _: (logits * 0).sum())


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2", "patch_embed.proj", "head"]
)
def test_exhaustive_weight_search_is_the_argmax_of_the_definition(vit, calibration, name):
    operation, recording = _recordings(vit, calibration, loss=fisher_loss, draws=2)[name]
    grid = Grid(0.3, 1.2, 30)
    operation.input_quantizer.spec = equal_table(BitWidth(4, 32))["qkv.input"]  # weight alone
    search_operation(operation, recording, FISHER, grid, rounds=1, mode="exhaustive")
    weight = operation.weight.detach()
    flat = weight.flatten(1).double()
    low, high = flat.min(1).values, flat.max(1).values
    errors = []
    for factor in grid.factors():
        step = (high - low) * factor / 15
        zero = torch.round(-low * factor / step)
        codes = (torch.round(flat / step[:, None]) + zero[:, None]).clamp(0, 15)
        estimate = (step[:, None] * (codes - zero[:, None])).reshape(weight.shape).float()
        output = operation.compute(recording.inputs[0], estimate)
        error = (recording.squared_gradient * (output - recording.output) ** 2).transpose(
            0, 1 if "patch" in name else -1
        )
        errors.append(error.flatten(1).sum(1))
    errors = torch.stack(errors)
    chosen = (operation.weight_quantizer.scale * 15 / (high - low).float())[None]
    index = (grid.factors()[:, None] - chosen).abs().argmin(0)
    regret = errors.gather(0, index[None]).squeeze(0) / errors.min(0).values
    assert (regret < 1.01).all()


@pytest.mark.parametrize("mode", ["exhaustive", "coarse-to-fine"])
def test_best_index_finds_the_top_of_a_unimodal_score(mode):
    tops = torch.tensor([0, 3, 50, 99])
    score = lambda index: -(index - tops).abs().float()  # noqa: E731
    assert torch.equal(best_index(score, 100, 4, mode, torch.device("cpu")), tops)


def test_a_later_round_looks_around_what_was_chosen_before():
    tops, start = torch.tensor([0, 10, 50, 99]), torch.tensor([2, 12, 47, 98])
    asked = []

    def score(index):
        asked.append(index)
        return -(index - tops).abs().float()

    found = best_index(score, 100, 4, "coarse-to-fine", torch.device("cpu"), start)
    assert torch.equal(found, tops)
    assert len(asked) == 3 + 2


def test_tiny_scales_score_worse_than_the_start():
    torch.manual_seed(0)
    output = torch.randn(4, 9, 6)
    recording = Recording((), output, torch.rand(4, 9, 6))
    for metric in (FISHER, COSINE):
        good = likeness(metric, recording, output + 0.01 * torch.randn_like(output), 1, -1)
        bad = likeness(metric, recording, torch.randn_like(output), 1, -1)
        assert good > bad


def test_sum_by_group_is_a_plain_sum():
    x = torch.randn(3, 4, 12)
    assert torch.allclose(sum_by_group(x, 3, -1), x.reshape(3 * 4, 3, 4).sum((0, 2)))
    assert torch.allclose(sum_by_group(x, 4, 1), x.sum((0, 2)))
    assert torch.allclose(sum_by_group(x, 1, 1), x.sum())


@pytest.mark.parametrize(("metric", "alpha"), [(COSINE, 0.5), (FISHER, 0.01)])
def test_coarse_to_fine_scores_about_as_high_as_exhaustive(metric, alpha, tiny, calibration):
    """Summed over all operations; a single score may be caught in a smaller peak."""
    losses = {"exhaustive": 0.0, "coarse-to-fine": 0.0}
    for operation, recording in _recordings(tiny, calibration, loss=fisher_loss, draws=2).values():
        for mode in losses:
            search_operation(operation, recording, metric, Grid(alpha, 1.2), 1, mode)
            quantizers, tensors = (
                operation.quantizers().values(),
                operation.operands(recording.inputs),
            )
            pair = [q.fake_quantize(t) for q, t in zip(quantizers, tensors, strict=True)]
            score = likeness(metric, recording, operation.compute(*pair).detach(), 1, -1)
            losses[mode] += float(1 - score if metric is COSINE else -score)
    assert losses["coarse-to-fine"] < 1.25 * losses["exhaustive"], losses


def test_search_lowers_the_output_error_it_measures(tiny, images):
    calibration = Calibration([images])
    for operation, recording in _recordings(tiny, calibration, loss=fisher_loss, draws=4).values():
        if operation.role not in ("qkv", "proj", "fc1", "fc2", "reduction"):
            continue

        def error(op=operation, rec=recording):
            pair = [
                q.fake_quantize(t)
                for q, t in zip(op.quantizers().values(), op.operands(rec.inputs), strict=True)
            ]
            return -float(likeness(FISHER, rec, op.compute(*pair).detach(), 1, -1))

        search_operation(operation, recording, FISHER, Grid(1.0, 1.0, 1), 1)
        start = error()
        search_operation(operation, recording, FISHER, Grid(0.01, 1.2, 100), 3)
        assert error() <= start


def _searched(operation, recording, which):
    quantizer = list(operation.quantizers().values())[which]
    tensors = operation.operands(recording.inputs)
    own = Candidates(quantizer, tensors[which], Grid(0.5, 1.2))
    return Operand(
        operation, recording, own.apply, quantizer, which, tensors[1 - which], own.groups
    )


def _scores(score, groups, indices):
    return torch.stack([score(torch.full((groups,), i)) for i in indices])


@torch.no_grad()
def test_second_moments_give_the_cosine_of_the_outputs(tiny, calibration):
    seen = set()
    for operation, recording in _recordings(tiny, calibration).values():
        recording = by_row(operation, recording)
        for which in (0, 1):
            searched = _searched(operation, recording, which)
            if not GramCosine.pays(searched):
                continue
            seen.add((operation.role, which))
            gram = _scores(GramCosine(searched), searched.groups, (0, 40, 99))
            direct = _scores(DirectScore(COSINE, searched), searched.groups, (0, 40, 99))
            torch.testing.assert_close(gram.float(), direct, rtol=0, atol=2e-6)
    assert {("fc1", 0), ("fc1", 1), ("qkv", 1), ("scores", 0), ("scores", 1)} <= seen


@torch.no_grad()
@pytest.mark.parametrize("metric", [FISHER, COSINE])
def test_chunks_add_up_to_the_whole(metric, vit, calibration, monkeypatch):
    for operation, recording in _recordings(vit, calibration, loss=fisher_loss).values():
        for which in (0, 1):
            searched = _searched(operation, recording, which)
            whole = _scores(DirectScore(metric, searched), searched.groups, (10, 50))
            with monkeypatch.context() as patch:
                patch.setattr("vit_ptq_bench.methods.quantization.search.scores.CHUNK_BYTES", 1)
                chunked = _scores(DirectScore(metric, searched), searched.groups, (10, 50))
            torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=0)


@given(
    masses=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    share=st.floats(0.01, 1.0),
)
def test_the_heaviest_rows_hold_their_share_and_are_no_more_than_needed(masses, share):
    gradient = torch.tensor(masses).reshape(-1, 1)
    index = heaviest(gradient, share, least=0.0)
    assert len(heaviest(gradient, share, least=0.5)) == max(len(index), (len(masses) + 1) // 2)
    total = sum(masses)
    kept = sorted((masses[i] for i in index), reverse=True)
    assert index.tolist() == sorted(set(index.tolist()))
    assert sum(kept) >= share * total * (1 - 1e-12)
    assert sum(kept[:-1]) <= share * total * (1 + 1e-12)
    assert set(kept) >= set(sorted(masses, reverse=True)[: len(kept)])


@torch.no_grad()
def test_operands_that_need_no_second_search_are_those_that_would_not_change(tiny, calibration):
    """Against alternation that searches everything in every round."""
    grid = Grid(0.3, 1.2, 20)
    for operation, recording in _recordings(tiny, calibration).values():
        quantizers, tensors = (
            list(operation.quantizers().values()),
            operation.operands(recording.inputs),
        )
        own = [Candidates(q, t, grid) for q, t in zip(quantizers, tensors, strict=True)]
        order = (0, 1) if operation.role in ("scores", "context") else (1, 0)
        for _ in range(3):
            for i in order:
                fixed = quantizers[1 - i].fake_quantize(tensors[1 - i])
                searched = Operand(
                    operation, recording, own[i].apply, quantizers[i], i, fixed, own[i].groups
                )
                score = DirectScore(COSINE, searched)
                found = best_index(score, 20, own[i].groups, "exhaustive", torch.device("cpu"))
                own[i].choose(found)
        plain = [q.scale.clone() for q in quantizers]
        search_operation(operation, recording, COSINE, grid, 3, "exhaustive")
        for quantizer, scale in zip(quantizers, plain, strict=True):
            same = torch.isclose(quantizer.scale, scale, rtol=1e-6)
            assert same.float().mean() > 0.98, operation.name


class _Kept(dict):
    """A place to share, in memory."""

    def put(self, key, tensors, seconds=0.0):
        assert seconds > 0
        self[key] = {name: tensor.clone() for name, tensor in tensors.items()}


def test_records_that_another_calibration_has_left_are_the_same_to_the_bit(vit, images):
    kept = _Kept()
    options = {"loss": fisher_loss, "draws": 2, "batch_size": 4}
    alone = _recordings(vit, Calibration([images], seed=3), **options)
    _recordings(vit, Calibration([images], seed=3, cache=kept), **options)
    assert len(kept) == 1
    found = _recordings(vit, Calibration([images], seed=3, cache=kept), **options)
    for name, (_, recording) in alone.items():
        other = found[name][1]
        assert all(torch.equal(a, b) for a, b in zip(recording.inputs, other.inputs, strict=True))
        assert torch.equal(recording.output, other.output)
        assert torch.equal(recording.squared_gradient, other.squared_gradient)


def test_other_weights_images_seeds_and_settings_share_nothing(vit, images):
    kept = _Kept()
    options = {"loss": fisher_loss, "draws": 2, "batch_size": 4}
    _recordings(vit, Calibration([images], seed=3, cache=kept), **options)
    _recordings(vit, Calibration([images], seed=4, cache=kept), **options)
    _recordings(vit, Calibration([images + 1], seed=3, cache=kept), **options)
    _recordings(vit, Calibration([images], seed=3, cache=kept), **options | {"draws": 3})
    _recordings(vit, Calibration([images], seed=3, cache=kept), **options | {"loss": _square_loss})
    other = copy.deepcopy(vit)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    _recordings(other, Calibration([images], seed=3, cache=kept), **options)
    assert len(kept) == 6


def _square_loss(logits, generator):
    return logits.square().sum()


@torch.no_grad()
def test_where_tokens_are_few_all_are_looked_at(vit, calibration):
    """The gradient of a head may lie on one image; the scales of its classes must serve all."""
    operation, recording = _recordings(vit, calibration, loss=fisher_loss)["head"]
    one = Recording(recording.inputs, recording.output, torch.zeros_like(recording.output))
    one.squared_gradient[0] = 1.0
    one.squared_gradient[1:] = 1e-4
    found = []
    for mode in ("coarse-to-fine", "exhaustive"):
        search_operation(operation, one, FISHER, Grid(0.3, 1.2, 12), 1, mode)
        found.append(operation.weight_quantizer.scale.clone())
    assert torch.equal(*found)  # a grid this small is searched whole either way
