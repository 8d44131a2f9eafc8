"""Small untrained models in the supported families, and calibration images for them."""

import pytest
import torch
from torch import nn

from vit_ptq_bench.bench.contract.models import (
    CLASSIFIERS,
    build_classifier,
    in_batches,
    make_images,
)
from vit_ptq_bench.methods.quantization.calibration.data import Calibration


@pytest.fixture(params=CLASSIFIERS)
def tiny(request: pytest.FixtureRequest) -> nn.Module:
    """Each family in turn."""
    return build_classifier(request.param)


@pytest.fixture
def vit() -> nn.Module:
    """The plain tiny ViT."""
    return build_classifier("vit")


@pytest.fixture
def images() -> torch.Tensor:
    """Eight random images [8, 3, 16, 16]."""
    return make_images()


@pytest.fixture
def calibration(images: torch.Tensor) -> Calibration:
    """The images in two batches."""
    return in_batches(images, seed=3)
