"""Lowered models: the same function in other words, and the truth about each site."""

import pytest
import torch

from tests.methods.test_export import OF_EVERY_FORM
from vit_ptq_bench.bench.contract.models import (
    CLASSIFIERS,
    DETECTOR_SIZE,
    build_classifier,
    build_detector,
    in_batches,
    make_images,
)
from vit_ptq_bench.methods import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.deployment.double import InDouble
from vit_ptq_bench.methods.quantization.deployment.lowering import (
    OperatorQuantizer,
    QuantizedGraph,
    lower,
)

TYPES = (("uint4", "uint8"), ("uint8", "uint16"))


def quantized(name, family="vit", bits="W4A4", protocol="equal"):
    cls = METHODS.get(name)
    method = cls.create(cls.quick)
    table = method.bit_table(BitWidth.parse(bits), protocol)
    return method.quantize(build_classifier(family), table, in_batches(make_images(8), seed=0))


def most_alike(found, expected):
    """Ties that fall to the other side of a step change whole rows: most rows have to be equal."""
    same = torch.isclose(found, expected, rtol=1e-4, atol=1e-4).all(dim=1)
    return bool(same.float().mean() >= 0.5)


def same_in_double(model, lowered):
    """In float64 nothing falls to another side: every logit has to be equal, to float32's rounding."""
    images = make_images(8)
    found, expected = InDouble(lowered)(images), InDouble(model)(images)
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_EVERY_FORM)
def test_a_lowered_model_is_the_same_function(name):
    model = quantized(name)
    before = model(make_images(8))
    lowered, sites = lower(model, *TYPES)
    with torch.no_grad():
        assert most_alike(lowered(make_images(8)), before) and same_in_double(model, lowered)
    assert torch.equal(model(make_images(8)), before), "the model itself is untouched"
    own = [site for site in model.sites() if not site.quantizer.spec.is_float]
    assert {site.site for site in sites} == {site.quantizer.site for site in own}
    for site in sites:
        assert (site.integers is None) == bool(site.reason)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_family_has_operators_at_every_site_of_a_uniform_method(family):
    model = quantized("minmax", family, "W8A8")
    lowered, sites = lower(model, *TYPES)
    assert all(site.integers == "uint8" for site in sites)
    with torch.no_grad():
        assert most_alike(lowered(make_images(8)), model(make_images(8)))
        assert same_in_double(model, lowered)


def test_an_operator_that_is_a_little_wrong_shows_in_double():
    model = quantized("minmax")
    lowered, _ = lower(model, *TYPES)
    operator = next(part for part in lowered.modules() if isinstance(part, OperatorQuantizer))
    operator.scale = operator.scale * 1.001
    with torch.no_grad():
        assert not same_in_double(model, lowered)


def test_weights_without_an_operator_are_stored_as_their_codes():
    model = quantized("subsetq")
    lowered, sites = lower(model, *TYPES)
    weights = [site for site in sites if site.key.endswith(".weight") and site.scheme == "subset"]
    assert weights and all(
        site.stored and "'subset' has no operator" in site.reason for site in weights
    )
    floats = {
        name
        for name, tensor in lowered.state_dict().items()
        if tensor.is_floating_point() and tensor.dim() == 2
    }
    assert not any(name.endswith("fc1.weight") for name in floats)


@pytest.mark.parametrize("scope", ["backbone", "full"])
def test_a_detector_is_lowered_up_to_its_heads(scope):
    method = METHODS.get("minmax").create({})
    table = method.bit_table(BitWidth.parse("W8A8")).with_scope(scope)
    images = torch.randn(2, 3, *DETECTOR_SIZE, generator=torch.Generator().manual_seed(1))
    model = method.quantize(build_detector(), table, Calibration([images]))
    lowered, sites = lower(model, *TYPES)
    with torch.no_grad():
        found, expected = QuantizedGraph(lowered)(images), model.module.extract_feat(images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.isclose(one, other, rtol=1e-3, atol=1e-3).float().mean() > 0.9
    own = [site for site in model.sites() if not site.quantizer.spec.is_float]
    below = ("backbone.", "neck.")
    assert {site.site for site in sites} == {
        site.quantizer.site for site in own if site.quantizer.site.startswith(below)
    }
    assert (len(sites) < len(own)) == (scope == "full")
    heads = [op for op in lowered.operations if not op.name.startswith(below)]
    assert all(op.input_quantizer.initialised for op in heads), "heads are as they were"
