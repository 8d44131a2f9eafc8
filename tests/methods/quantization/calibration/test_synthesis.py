"""Images made from a model alone: what they maximise, and what they follow from."""

import copy

import pytest
import torch

from vit_ptq_bench.bench.contract.models import CLASSIFIERS, build_classifier, build_detector
from vit_ptq_bench.bench.contract.opened import opened_while
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.sources import InputForm, SynthesisSettings
from vit_ptq_bench.methods.quantization.calibration.synthesis import (
    attention_entropy,
    full_precision,
    synthesise,
    total_variation,
)

SMALL = InputForm((16, 16), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))

FEW = SynthesisSettings(steps=8, batch=4)


def noise(form, count=4, seed=7):
    return torch.randn(count, 3, *form.size, generator=torch.Generator().manual_seed(seed))


def entropy(model, images):
    with torch.no_grad():
        return float(attention_entropy(full_precision(model), images, FEW.bandwidth)[0].mean())


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_entropy_of_patch_similarities_rises(family):
    """By itself: to an untrained model noise is diverse already, and a smooth image is not."""
    model = build_classifier(family)
    settings = SynthesisSettings(steps=25, batch=4, rate=0.1, class_weight=0.0, smoothness=0.0)
    (images,) = synthesise(model, SMALL, 4, settings, seed=0)
    low = -torch.tensor(SMALL.mean).view(3, 1, 1) / torch.tensor(SMALL.std).view(3, 1, 1)
    high = (1 - torch.tensor(SMALL.mean).view(3, 1, 1)) / torch.tensor(SMALL.std).view(3, 1, 1)
    start = noise(SMALL).clamp(low, high)
    assert entropy(model, images) > entropy(model, start) + 0.1


def test_a_detector_s_images_come_from_its_backbone_alone():
    model = build_detector()
    form = InputForm((64, 64), (0.5,) * 3, (0.25,) * 3)
    _, logits = attention_entropy(full_precision(model), noise(form, 2), FEW.bandwidth)
    assert logits is None
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone"):
            parameter.data.fill_(float("nan"))  # neck and heads are not run
    (images,) = synthesise(
        model, form, 2, SynthesisSettings(steps=15, rate=0.1, smoothness=0.0), seed=0
    )
    assert images.shape == (2, 3, 64, 64)
    assert entropy(model, images) > entropy(model, noise(form, 2).clamp(-2, 2))


def test_images_are_classified_as_they_were_asked_to_be():
    """With the cross entropy alone the prediction becomes the class that was drawn, and sure."""
    model = build_classifier("vit")
    settings = SynthesisSettings(steps=40, batch=8, class_weight=50.0, jitter=0.0)
    (images,) = synthesise(model, SMALL, 8, settings, seed=0)
    with torch.no_grad():
        sure = model(images).softmax(1).amax(1).mean()
        before = model(noise(SMALL, 8)).softmax(1).amax(1).mean()
    assert sure > before


def test_the_seed_decides_them_to_the_bit():
    model = build_classifier("vit")
    first, again, other = (
        torch.cat(synthesise(model, SMALL, 6, FEW, seed=seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_random_generators_of_the_process_stay_as_they_are():
    model = build_classifier("vit")
    state = torch.get_rng_state()
    synthesise(model, SMALL, 2, FEW, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_an_image_does_not_depend_on_those_beside_it():
    """The loss is a sum over images, so another target of one leaves the others' gradients as they are."""
    model = full_precision(build_classifier("swin"))
    images = noise(SMALL).requires_grad_()
    attention_entropy(model, images, 0.05)[0].sum().backward()
    alone = images.detach()[:1].requires_grad_()
    attention_entropy(model, alone, 0.05)[0].sum().backward()
    torch.testing.assert_close(alone.grad[0], images.grad[0], rtol=1e-3, atol=1e-5)


def test_they_come_in_batches_within_the_pixels_there_are():
    batches = synthesise(build_classifier("vit"), SMALL, 9, FEW, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    images = torch.cat(batches)
    pixels = images * torch.tensor(SMALL.std).view(3, 1, 1) + torch.tensor(SMALL.mean).view(3, 1, 1)
    assert pixels.amin() >= -1e-6 and pixels.amax() <= 1 + 1e-6
    assert not images.requires_grad


def test_smoothness_makes_them_smooth():
    model = build_classifier("vit")
    rough, smooth = (
        torch.cat(
            synthesise(model, SMALL, 4, SynthesisSettings(steps=20, smoothness=weight), seed=0)
        )
        for weight in (0.0, 100.0)
    )
    assert total_variation(smooth).mean() < 0.7 * total_variation(rough).mean()


def test_total_variation_of_a_ramp():
    ramp = torch.arange(5.0).expand(1, 3, 4, 5) * 2
    assert total_variation(ramp).tolist() == [2.0]


def test_no_file_is_opened_and_the_model_is_untouched():
    model = build_classifier("swin")
    before = copy.deepcopy(model.state_dict())
    assert opened_while(lambda: synthesise(model, SMALL, 2, FEW, seed=0)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_is_told_of_each_step():
    told = []
    synthesise(
        build_classifier("vit"),
        SMALL,
        6,
        SynthesisSettings(steps=2, batch=4),
        seed=0,
        progress=lambda done, total, stage="": told.append((done, total, stage)),
    )
    assert told == [(done, 4, "images") for done in (1, 2, 3, 4)]


def test_outputs_that_are_not_finite_are_refused():
    model = build_classifier("vit")
    model.blocks[1].attn.proj.bias.data.fill_(float("nan"))
    with pytest.raises(MethodError, match=r"blocks\.1\.attn\.proj: outputs are not finite"):
        synthesise(model, SMALL, 2, FEW, seed=0)
