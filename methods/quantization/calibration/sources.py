"""Where calibration images come from, by name; without torch, for the plan and for what only prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

TRAINING, FOLDER, PSAQ = "training", "folder", "psaq-vit"

SOURCES = {
    TRAINING: "images of the task's training set, drawn by seed",
    FOLDER: "images of another folder (--calibration-dir), drawn by seed: another domain",
    PSAQ: "made from the model alone by seed, as PSAQ-ViT does: 0 real images",
}
"""Name of a source -> what it gives, in words."""

SYNTHESIS_VERSION = 1
"""Of the images that `synthesis.synthesise` makes; raise it whenever they change."""

PASSES_PER_STEP = 3
"""What a step of the synthesis costs in forward passes: one forward, and a backward pass worth two."""


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of `synthesis.synthesise`.

    Attributes:
        steps: of Adam.
        rate: its learning rate, in units of the model's normalised pixels.
        batch: images that are made at a time.
        smoothness: weight of the total variation.
        class_weight: weight of the cross entropy to the image's class; a detector has none.
        bandwidth: deviation of the kernel with which the density of similarities is estimated.
        jitter: largest shift of the images before a step, as a share of their sides.
    """

    steps: int = field(default=60, metadata={"at_least": 1, "at_most": 100_000})
    rate: float = field(default=0.25, metadata={"more_than": 0.0, "at_most": 100.0})
    batch: int = field(default=16, metadata={"at_least": 1, "at_most": 4096})
    smoothness: float = field(default=20.0, metadata={"at_least": 0.0, "at_most": 1e6})
    class_weight: float = field(default=1.0, metadata={"at_least": 0.0, "at_most": 1e6})
    bandwidth: float = field(default=0.05, metadata={"at_least": 0.005, "at_most": 1.0})
    jitter: float = field(default=0.0625, metadata={"at_least": 0.0, "at_most": 0.5})

    @property
    def passes(self) -> int:
        """Forward passes over all images that the synthesis costs, about."""
        return PASSES_PER_STEP * self.steps


class InputForm(NamedTuple):
    """What a model's images are like.

    Attributes:
        size: height and width in pixels.
        mean: of each of the three channels, what is subtracted from pixels in [0, 1].
        std: of each channel, what the difference is divided by.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
