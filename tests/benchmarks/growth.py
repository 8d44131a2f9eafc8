"""How the cost of calibration grows: a table and a plot.

    python -m tests.benchmarks.growth [--plot docs/growth.svg]

One quantity at a time is changed from a common base (a ViT of width 192 and depth 2 at 224 pixels, 32 images,
W4A4, 16 scale candidates). Costs are processor seconds on one thread, divided by those of the base's
full-precision forward pass, measured right before. The slope is that of the logarithms, by least squares: 1
is linear.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration


@dataclass(frozen=True)
class Setting:
    """What a cost depends on."""

    images: int = 32
    width: int = 192
    depth: int = 2
    bits: int = 4
    candidates: int = 16


BASE = Setting()
AXES: dict[str, tuple[int, ...]] = {
    "images": (8, 16, 32, 64, 128, 256),
    "width": (96, 192, 384),
    "depth": (2, 4, 8),
    "bits": (3, 4, 6, 8),
    "candidates": (16, 32, 64),
}
SEARCHING = ("easyquant",)
METHODS_SHOWN = ("minmax", "omse", "repq-vit", "smoothquant", "gptq", "erq", "easyquant", "brecq")
ITERATIONS = 5


def build(setting: Setting) -> nn.Module:
    """Return a ViT; its weights do not matter for its cost."""
    torch.manual_seed(0)
    heads = max(1, setting.width // 64)
    return VisionTransformer(embed_dim=setting.width, depth=setting.depth, num_heads=heads).eval()


def forward_seconds(model: nn.Module, images: torch.Tensor) -> float:
    """Return the processor seconds of one full-precision pass."""
    found = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.process_time()
            model(images)
            found.append(time.process_time() - start)
    return min(found)


def calibration_seconds(name: str, setting: Setting) -> float:
    """Return the processor seconds of one calibration."""
    given: dict[str, Any] = {}
    if name == "easyquant":
        given = {"steps": setting.candidates, "search": "exhaustive"}
    if name == "brecq":
        given = {"iterations": ITERATIONS}
    method = METHODS.get(name).create(given)
    model = build(setting)
    images = torch.randn(setting.images, 3, 224, 224)
    table = method.bit_table(BitWidth(setting.bits, setting.bits))
    start = time.process_time()
    method.quantize(model, table, Calibration([images], seed=0))
    return time.process_time() - start


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Yield axis, method and its costs in F, one for each value of the axis."""
    base, images = build(BASE), torch.randn(BASE.images, 3, 224, 224)
    forward_seconds(base, images)
    for axis, values in AXES.items():
        for name in SEARCHING if axis == "candidates" else METHODS_SHOWN:
            unit = forward_seconds(base, images)
            costs = [
                calibration_seconds(name, replace(BASE, **{axis: value})) / unit for value in values
            ]
            yield axis, name, costs


def slope(values: tuple[int, ...], costs: list[float]) -> float:
    """Return the exponent with which the costs grow."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def plot(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw one panel per axis, both scales logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 3.6), sharey=True)
    for panel, (axis, costs) in zip(panels, found.items(), strict=True):
        for name in costs:
            colour = f"C{METHODS_SHOWN.index(name)}"
            panel.loglog(
                AXES[axis], costs[name], marker="o", markersize=3, label=name, color=colour
            )
        panel.set_xticks(AXES[axis], [str(value) for value in AXES[axis]])
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("cost in F of the base")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="upper center", ncols=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables and draw."""
    parser = argparse.ArgumentParser(description="How the cost of calibration grows.")
    parser.add_argument("--plot", type=Path, help="also draw it (needs matplotlib)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for axis, name, costs in measure():
        found.setdefault(axis, {})[name] = costs
        print(axis, name, *(f"{cost:.1f}" for cost in costs), flush=True)
    for axis, by_method in found.items():
        rows = [
            [f"`{name}`", *(f"{cost:.1f}" for cost in costs), f"{slope(AXES[axis], costs):.2f}"]
            for name, costs in by_method.items()
        ]
        print("\n" + tabulate(rows, [axis, *AXES[axis], "slope"], tablefmt="github"))
    if options.plot is not None:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
