"""Passes over the model: what was not reached is named, squared gradients are the same either way."""

import pytest
import torch

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.gradients import fisher_loss, squared_gradients
from vit_ptq_bench.methods.quantization.calibration.passes import calibrate_sites, require_reached
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.calibration.recording import record_operations
from vit_ptq_bench.methods.quantization.calibration.segment_recording import record_segments
from vit_ptq_bench.methods.quantization.error_compensation.visiting import visit_layers
from vit_ptq_bench.methods.quantization.model.families import wrap_model


@pytest.fixture
def wrapped(vit):
    return wrap_model(vit, equal_table(BitWidth(4, 4)))


def test_what_a_pass_never_reaches_is_named(wrapped, images):
    require_reached(["a", "b"], {"a": 1, "b": 2})
    with pytest.raises(
        MethodError, match=r"never reached \['b', 'c'\]; the model is not supported"
    ):
        require_reached(["a", "b", "c"], {"a"})
    first = wrapped.structure.segments[0]
    with pytest.raises(MethodError, match=r"never reached \['blocks\.0"):
        calibrate_sites(
            list(wrapped.sites()), lambda: first.run(images), minmax_rule, sequential=False
        )


def test_no_pass_is_made_where_there_is_nothing_to_calibrate(vit):
    weights_alone = wrap_model(vit, equal_table(BitWidth(4, 32)))

    def run():
        raise AssertionError("a pass for nothing")

    calibrate_sites(list(weights_alone.sites()), run, minmax_rule, sequential=False)


def test_squared_gradients_are_the_mean_over_draws():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    drawn = iter([3.0, 5.0])
    (found,) = squared_gradients(
        2 * x, [x], lambda y, _: next(drawn) * y.sum(), 2, torch.Generator()
    )
    assert found.tolist() == [(6.0**2 + 10.0**2) / 2] * 2


def test_operations_and_segments_are_recorded_with_the_same_gradients(wrapped, calibration):
    settings = {"loss": fisher_loss, "draws": 2, "batch_size": 4}
    head = dict(record_operations(wrapped, calibration, **settings))[wrapped.operations[-1]]
    last = record_segments(wrapped, calibration, **settings)[-1]
    torch.testing.assert_close(head.squared_gradient, last.squared_gradient)


@pytest.mark.parametrize("behind", [False, True])
@torch.no_grad()
def test_later_layers_see_what_was_done_to_earlier_ones_unless_visited_behind(
    behind, wrapped, calibration
):
    layers, seen, told = wrapped.weighted_operations(), {}, []

    def halve(layer, x):
        seen[layer.name] = x.clone()
        layer.weight.mul_(0.5)

    exact = {}
    visit_layers(wrapped, calibration, layers, lambda op, x: exact.update({op.name: x.clone()}))
    visit_layers(
        wrapped, calibration, layers, halve, behind=behind, progress=lambda *at: told.append(at)
    )
    assert list(seen) == [layer.name for layer in layers]
    assert told == [(done, len(layers)) for done in range(1, len(layers) + 1)]
    same = [torch.allclose(seen[name], exact[name], atol=1e-5) for name in seen]
    assert same == [True] + [behind] * (len(layers) - 1)
