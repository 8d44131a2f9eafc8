"""What calibration keeps has a budget, and what cannot fit is refused before it starts."""

import pytest
import torch

from methods import METHODS, MethodError
from methods.quantization import BitWidth, Calibration, memory


@pytest.mark.parametrize(
    ("name", "what"), [("minmax", "one pass over"), ("easyquant", "recording")]
)
def test_what_cannot_fit_says_so_before_it_starts(name, what, vit, calibration, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    monkeypatch.setattr("methods.quantization.calibration.available", lambda device: 1000.0)
    method = METHODS.get(name).create()
    steps = []
    with pytest.raises(MethodError, match=f"{what}.* GB of memory and 0.0 GB are free; use fewer"):
        method.quantize(
            vit, method.bit_table(BitWidth(4, 4)), calibration, lambda *step: steps.append(step)
        )
    assert not steps


def test_need_grows_with_the_images(vit, images, monkeypatch):
    needs = []
    monkeypatch.setattr("methods.quantization.calibration.available", lambda device: 0.0)
    monkeypatch.setattr(
        "methods.quantization.calibration.require", lambda need, *_: needs.append(need)
    )
    method = METHODS.get("minmax").create()
    for count in (2, 4):
        method.quantize(vit, method.bit_table(BitWidth(4, 4)), Calibration([images[:count]]))
    assert needs[1] == 2 * needs[0] > 0


def test_first_ranges_come_from_a_bounded_number_of_images(images):
    calibration = Calibration([images[:3], images[3:]], seed=5)
    assert calibration.first(100) is calibration
    part = calibration.first(4)
    assert (part.n_images, part.seed) == (4, 5)
    assert torch.equal(part.whole(), images[:4])
