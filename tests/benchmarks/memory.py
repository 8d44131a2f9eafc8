"""How much memory calibration takes over what the model itself takes.

    python -m tests.benchmarks.memory [--images 32] [--reconstruction-images 1024] [--swin]

Each method calibrates a DeiT-B-sized ViT (random weights, 224 pixels, W4A4) in a process of its own. One
candidate and one iteration are enough: what is held does not depend on how many follow. Reconstruction has a
model of two blocks, since it holds the same four activations however many there are; ``--swin``: a model
of Swin-B's widths with two blocks in each stage. Printed is the highest resident set of the process less the
one before calibration, in GB.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ptq_bench.bench.execution.measure import PeakMemory
from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration

SEARCH: dict[str, dict[str, Any]] = {
    "minmax": {},
    "percentile": {},
    "omse": {},
    "repq-vit": {},
    "smoothquant": {},
    "gptq": {},
    "erq": {},
    "easyquant": {"steps": 1},
    "ptq4vit": {"steps": 1, "rounds": 1, "draws": 1},
    "apq-vit": {"steps": 1, "rounds": 1, "draws": 1},
}
RECONSTRUCTION_SETTINGS = {"iterations": 1, "batch_size": 8}
RECONSTRUCTION = ("brecq", "qdrop", "pd-quant", "mgrq", "lrquant")


def resident() -> float:
    """Return the resident set of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def build(depth: int, swin: bool) -> nn.Module:
    """Return a model with random weights, for 224 pixels."""
    torch.manual_seed(0)
    if swin:
        return SwinTransformer(embed_dim=128, depths=(2, 2, 2, 2), num_heads=(4, 8, 16, 32)).eval()
    return VisionTransformer(depth=depth).eval()


def measure(name: str, settings: dict[str, Any], depth: int, swin: bool, images: int) -> float:
    """Return the GB that one calibration takes at its peak."""
    torch.set_num_threads(1)
    model = build(depth, swin)
    calibration = Calibration([torch.randn(images, 3, 224, 224)])
    method = METHODS.get(name).create(settings)
    before, memory = resident(), PeakMemory(torch.device("cpu"))
    memory.reset()
    method.quantize(model, method.bit_table(BitWidth(4, 4)), calibration)
    return memory.read() / 1000 - before / 10**9


def main(arguments: list[str] | None = None) -> None:
    """Measure each method in a fresh process and print a table."""
    parser = argparse.ArgumentParser(description="How much memory calibration takes.")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--reconstruction-images", type=int, default=1024)
    parser.add_argument(
        "--methods", nargs="*", metavar="METHOD", default=[*SEARCH, *RECONSTRUCTION]
    )
    parser.add_argument("--swin", action="store_true", help="Swin-B's widths in place of DeiT-B's")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.methods:
        if name in RECONSTRUCTION:
            settings, depth, images = RECONSTRUCTION_SETTINGS, 2, options.reconstruction_images
        else:
            settings, depth, images = SEARCH[name], 12, options.images
        job = (name, settings, depth, options.swin, images)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append([f"`{name}`", images, f"{pool.apply(measure, job):.1f}"])
        print(*rows[-1], flush=True)
    print("\n" + tabulate(rows, ["method", "images", "GB"], tablefmt="github"))


if __name__ == "__main__":
    main()
