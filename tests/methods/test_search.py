"""The scale search against brute force written from its definition."""

import pytest
import torch

from methods import MethodError
from methods.quantization import BitWidth, Calibration, equal_table, wrap_model
from methods.quantization.capture import (
    Record,
    fisher_loss,
    record_operations,
    self_divergence_loss,
)
from methods.quantization.search import (
    Grid,
    best_index,
    cosine_metric,
    fisher_metric,
    search_operation,
    sum_by_group,
)

TABLE = equal_table(BitWidth(4, 4))


def _records(model, calibration, **options):
    wrapped = wrap_model(model, TABLE)
    return {
        op.name: (op, record) for op, record in record_operations(wrapped, calibration, **options)
    }


def test_records_hold_what_the_model_computed(tiny, calibration, images):
    for operation, record in _records(tiny, calibration, batch_size=3).values():
        assert record.squared_gradient is None
        torch.testing.assert_close(
            operation.compute(*operation.operands(record.inputs)),
            record.output,
            rtol=1e-4,
            atol=1e-4,
        )
    head = next(r for op, r in _records(tiny, calibration).values() if op.role == "head")
    if type(tiny).__name__ == "VisionTransformer":
        torch.testing.assert_close(head.output, tiny(images), rtol=1e-4, atol=1e-4)


def test_grouping_by_memory_changes_nothing(vit, calibration, monkeypatch):
    options = {"loss": fisher_loss, "draws": 2, "batch_size": 4}
    together = _records(vit, calibration, **options)
    monkeypatch.setattr("methods.quantization.capture.MEMORY_BUDGET", 1)
    apart = _records(vit, calibration, **options)
    for name, (_, record) in together.items():
        assert torch.equal(record.squared_gradient, apart[name][1].squared_gradient)
        assert torch.equal(record.output, apart[name][1].output)


def test_fisher_gradient_at_the_head_is_the_softmax_covariance(vit, calibration):
    """At the logits E[g g^T] = diag(p) - p p^T, so the mean squared gradient tends to p (1 - p)."""
    _, record = _records(vit, calibration, loss=fisher_loss, draws=3000)["head"]
    p = record.output.softmax(-1)
    torch.testing.assert_close(record.squared_gradient, p * (1 - p), rtol=0, atol=0.03)


def test_self_divergence_gradient_is_only_rounding_noise(vit, calibration):
    fisher = _records(vit, calibration, loss=fisher_loss)["blocks.0.mlp.fc1"][1].squared_gradient
    noise = _records(vit, calibration, loss=self_divergence_loss)["blocks.0.mlp.fc1"][
        1
    ].squared_gradient
    assert noise.mean() < 1e-6 * fisher.mean()


def test_a_loss_without_gradient_is_an_error(vit, calibration):
    with pytest.raises(MethodError, match="no gradient"):
        _records(vit, calibration, loss=lambda logits, _: (logits * 0).sum())


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2", "patch_embed.proj", "head"]
)
def test_exhaustive_weight_search_is_the_argmax_of_the_definition(vit, calibration, name):
    operation, record = _records(vit, calibration, loss=fisher_loss, draws=2)[name]
    grid = Grid(0.3, 1.2, 30)
    operation.input_quantizer.spec = equal_table(BitWidth(4, 32))["qkv.input"]  # weight alone
    search_operation(operation, record, fisher_metric, grid, rounds=1, mode="exhaustive")
    weight = operation.weight.detach()
    flat = weight.flatten(1).double()
    low, high = flat.min(1).values, flat.max(1).values
    errors = []
    for factor in grid.factors():
        step = (high - low) * factor / 15
        zero = torch.round(-low * factor / step)
        codes = (torch.round(flat / step[:, None]) + zero[:, None]).clamp(0, 15)
        estimate = (step[:, None] * (codes - zero[:, None])).reshape(weight.shape).float()
        output = operation.compute(record.inputs[0], estimate)
        error = (record.squared_gradient * (output - record.output) ** 2).transpose(
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


def test_tiny_scales_score_worse_than_the_start():
    torch.manual_seed(0)
    output = torch.randn(4, 9, 6)
    record = Record((), output, torch.rand(4, 9, 6))
    for metric in (fisher_metric, cosine_metric):
        good = metric(record, output + 0.01 * torch.randn_like(output), 1, -1)
        bad = metric(record, torch.randn_like(output), 1, -1)
        assert good > bad


def test_sum_by_group_is_a_plain_sum():
    x = torch.randn(3, 4, 12)
    assert torch.allclose(sum_by_group(x, 3, -1), x.reshape(3 * 4, 3, 4).sum((0, 2)))
    assert torch.allclose(sum_by_group(x, 4, 1), x.sum((0, 2)))
    assert torch.allclose(sum_by_group(x, 1, 1), x.sum())


@pytest.mark.parametrize(("metric", "alpha"), [(cosine_metric, 0.5), (fisher_metric, 0.01)])
def test_coarse_to_fine_scores_about_as_high_as_exhaustive(metric, alpha, tiny, calibration):
    """Summed over all operations; a single score may be caught in a smaller peak."""
    losses = {"exhaustive": 0.0, "coarse-to-fine": 0.0}
    for operation, record in _records(tiny, calibration, loss=fisher_loss, draws=2).values():
        for mode in losses:
            search_operation(operation, record, metric, Grid(alpha, 1.2), 1, mode)
            quantizers, tensors = operation.quantizers().values(), operation.operands(record.inputs)
            pair = [q.fake_quantize(t) for q, t in zip(quantizers, tensors, strict=True)]
            score = metric(record, operation.compute(*pair).detach(), 1, -1)
            losses[mode] += float(1 - score if metric is cosine_metric else -score)
    assert losses["coarse-to-fine"] < 1.25 * losses["exhaustive"], losses


def test_search_lowers_the_output_error_it_measures(tiny, images):
    calibration = Calibration([images])
    for operation, record in _records(tiny, calibration, loss=fisher_loss, draws=4).values():
        if operation.role not in ("qkv", "proj", "fc1", "fc2", "reduction"):
            continue

        def error(op=operation, rec=record):
            pair = [
                q.fake_quantize(t)
                for q, t in zip(op.quantizers().values(), op.operands(rec.inputs), strict=True)
            ]
            return -float(fisher_metric(rec, op.compute(*pair).detach(), 1, -1))

        search_operation(operation, record, fisher_metric, Grid(1.0, 1.0, 1), 1)
        start = error()
        search_operation(operation, record, fisher_metric, Grid(0.01, 1.2, 100), 3)
        assert error() <= start
