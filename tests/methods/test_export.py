"""`torch.export` of quantized models: a graph that gives the same bits, for any number of images."""

import pytest
import torch

from vit_ptq_bench.bench.contract.models import (
    CLASSIFIERS,
    build_classifier,
    in_batches,
    make_images,
)
from vit_ptq_bench.methods import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth

OF_EVERY_FORM = (
    *("repq-vit", "fq-vit", "ptq4vit", "apq-vit", "adalog", "dopq-vit", "igq-vit", "i-and-s-vit"),
    *("rose", "subsetq", "pwlq", "arcq", "h-vit", "erq-released", "qwt", "lrquant", "conlocnn"),
    *("ptq4vit-released", "fixed-point", "ls-vit"),
)
"""Methods with forms of quantizers, corrections or transforms that others do not have."""


def exported(name, family, protocol="equal"):
    """The quantized model, and its graph for any number of images."""
    method = METHODS.get(name).create(METHODS.get(name).quick)
    table = method.bit_table(BitWidth.parse("W4A4"), protocol)
    model = method.quantize(build_classifier(family), table, in_batches(make_images(8), seed=0))
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = torch.export.export(model, (make_images(3),), dynamic_shapes=(({0: batch},),))
    return model, graph.module()


@pytest.mark.parametrize("name", OF_EVERY_FORM)
@pytest.mark.parametrize("protocol", ["equal", "authors"])
def test_the_graph_of_a_method_gives_the_same_bits(name, protocol):
    model, graph = exported(name, "vit", protocol)
    for count in (1, 8):
        images = make_images(count)
        assert torch.equal(graph(images), model(images))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_family_of_classifiers_can_be_exported(family):
    model, graph = exported("repq-vit", family)
    images = make_images(5)
    assert torch.equal(graph(images), model(images))
    assert not torch.equal(graph(images), build_classifier(family)(images))


def test_the_forms_that_methods_use_are_all_tried():
    used = {
        site.scheme
        for name in METHODS.module_dict
        for protocol in ("equal", "authors")
        for site in _table(name, protocol).values()
        if not site.is_float
    }
    tried = {
        site.scheme
        for name in OF_EVERY_FORM
        for protocol in ("equal", "authors")
        for site in _table(name, protocol).values()
    }
    assert used <= tried


def _table(name, protocol):
    method = METHODS.get(name).create({})
    return dict(method.bit_table(BitWidth.parse("W4A4"), protocol).items())
