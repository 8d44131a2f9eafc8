"""Train a bundled model: ``python -m vit_ptq_bench.tasks.training.classifiers swin_mini --data ROOT``.

ROOT is a folder of torchvision's ``FashionMNIST``. A columnar model starts from the weights of a ViT that was
trained on ImageNet (``--start``), whose blocks, or some of them, it takes over: what makes large transformers
hard to quantize, a few dominant channels, massive tokens and attention of few peaks, is grown in days of
training, and a short one on easy pictures neither grows nor removes it. The others start at random, with
log-normal LayerNorm gains in place of dominant channels. Nothing is selected on the test set: the last
weights are kept, and the test set is read once, at the end, for the model's card.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vit_ptq_bench.permissions import make_ordinary
from vit_ptq_bench.tasks.classification.fashion_pictures import Pictures, fashion_slice
from vit_ptq_bench.tasks.classification.normalisation import labelled_batches, picture_batches
from vit_ptq_bench.tasks.classification.timm_models import adapted_state
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES, build_architecture
from vit_ptq_bench.tasks.storage.checkpoints import read_state_dict
from vit_ptq_bench.tasks.storage.model_cards import (
    ModelCard,
    read_card,
    weights_path,
    write_card,
)
from vit_ptq_bench.tasks.storage.weights import load_weights
from vit_ptq_bench.tasks.training.fashion_slices import fitting_pictures

BATCH = 64

ROUND = 6400
"""Pictures between two checkpoints."""

WARMUP = 4000

GAIN_SPREAD = 1.0
"""Standard deviation of the logarithm of the LayerNorm gains at a random start."""

SHIFT = 2
"""Pixels by which a picture is moved at most, over black."""


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """Return top-1 in percent."""
    model.eval()
    predictions = [model(part).argmax(1) for part in picture_batches(pictures.images, 200)]
    return 100 * float((torch.cat(predictions).numpy() == pictures.labels).mean())


@torch.no_grad()
def spread_gains(model: nn.Module) -> None:
    """Draw every LayerNorm gain from a log-normal distribution."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.normal_(0, GAIN_SPREAD).exp_()


def start_from(model: nn.Module, path: Path, blocks: Sequence[int]) -> None:
    """Give ``model`` the weights of a larger ViT, all but those of its heads.

    Args:
        model: a timm VisionTransformer, distilled or not, of the same width.
        path: weights of such a model with one class token.
        blocks: which of its blocks become the blocks of ``model``, in this order.
    """
    state = dict(read_state_dict(path))
    if isinstance(model, VisionTransformerDistilled):
        state["dist_token"] = state["cls_token"]
        state["pos_embed"] = torch.cat((state["pos_embed"][:, :1], state["pos_embed"]), 1)
    whole, _ = adapted_state(state, model)
    taken = {n: t for n, t in whole.items() if not n.startswith(("blocks.", "head"))}
    for place, block in enumerate(blocks):
        prefix = f"blocks.{block}."
        for name in (name for name in whole if name.startswith(prefix)):
            taken[f"blocks.{place}.{name.removeprefix(prefix)}"] = whole[name]
    missing, unexpected = model.load_state_dict(taken, strict=False)
    if unexpected or any(not name.startswith("head") for name in missing):
        raise ValueError(f"{path} does not fit: {missing} are missing, {unexpected} too many")


def build_optimizer(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.dim() > 1].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": 0.05},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=rate,
    )


def loss_and_hits(
    model: nn.Module, teacher: nn.Module | None, images: Tensor, labels: Tensor
) -> tuple[Tensor, int]:
    """Return the loss and the number of pictures told right.

    With a teacher the distillation token learns its decision (hard distillation, DeiT).
    """
    output = model(images)
    if teacher is None:
        return F.cross_entropy(output, labels), int((output.argmax(1) == labels).sum())
    with torch.no_grad():
        decisions = teacher(images).argmax(1)
    own, distilled = output
    loss = (F.cross_entropy(own, labels) + F.cross_entropy(distilled, decisions)) / 2
    return loss, int(((own + distilled).argmax(1) == labels).sum())


def learning_rate(peak: float, seen: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    return peak * min(1.0, (seen + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * seen / total))


def varied(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return pictures uint8 [n, H, W, 3] mirrored by chance and moved by up to `SHIFT` pixels."""
    height, width = images.shape[1:3]
    framed = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    moved = np.empty_like(images)
    for image, place in zip(framed, moved, strict=True):
        down, across = rng.integers(0, 2 * SHIFT + 1, 2)
        view = image[down : down + height, across : across + width]
        place[:] = view[:, ::-1] if rng.random() < 0.5 else view
    return moved


class Trainer:
    """Trains one model, round by round, and keeps a checkpoint it can go on from."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.model = build_architecture(options.model)
        if options.start is None:
            spread_gains(self.model)
        else:
            start_from(self.model, options.start, options.blocks)
        self.teacher = _teacher(options.teacher)
        if isinstance(self.model, VisionTransformerDistilled):
            self.model.set_distilled_training(True)
        self.optimizer = build_optimizer(self.model, options.lr)
        self.seen = 0
        self.checkpoint = Path(options.output).with_suffix(".checkpoint.pt")
        self.pictures = fitting_pictures(options.data)

    def run(self) -> None:
        """Train to the end, from the checkpoint if there is one."""
        self._resume()
        started = time.monotonic()
        while self.seen < self.options.images:
            hits = self._round()
            self._save()
            watched = accuracy(self.model, fashion_slice("holdout"))
            seconds = time.monotonic() - started
            print(
                f"{self.seen:7d} pictures, train {100 * hits:.1f} %, held out {watched:.1f} %, "
                f"{seconds:.0f} s",
                flush=True,
            )

    def _round(self) -> float:
        self.model.train()
        # The generator depends on the round alone, so a resumed run sees the same pictures.
        rng = np.random.default_rng([self.options.seed, self.seen])
        rows = rng.permutation(len(self.pictures.labels))[:ROUND]
        images = varied(self.pictures.images[rows], rng)
        batches = labelled_batches(images, self.pictures.labels[rows], BATCH)
        return sum(self._step(*batch) for batch in batches) / len(rows)

    def _step(self, images: Tensor, labels: Tensor) -> int:
        rate = learning_rate(self.options.lr, self.seen, self.options.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, hits = loss_and_hits(self.model, self.teacher, images, labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seen += len(labels)
        return hits

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seen": self.seen,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"]


def _teacher(name: str | None) -> nn.Module | None:
    return None if name is None else _stored(name, weights_path(name))


def _stored(name: str, weights: Path) -> nn.Module:
    """A bundled architecture with stored weights, in float32."""
    model = build_architecture(name)
    load_weights(model, weights)
    return model


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a bundled model on Fashion-MNIST.")
    parser.add_argument("model", choices=list(ARCHITECTURES))
    parser.add_argument("--data", type=Path, help="folder of torchvision's FashionMNIST")
    parser.add_argument("--start", type=Path, help="weights of a larger ViT to start from")
    parser.add_argument(
        "--blocks", type=_numbers, help="which of its blocks, like 0,2,4 (default: the first)"
    )
    parser.add_argument("--images", type=int, default=120_000, help="pictures to train on")
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--teacher", choices=list(ARCHITECTURES), help="bundled model to distil from"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="default: the model's place in the package")
    parser.add_argument(
        "--measure", action="store_true", help="train nothing, measure the stored weights again"
    )
    options = parser.parse_args(arguments)
    if not options.measure and options.data is None:
        parser.error("training needs --data")
    if not options.measure and (options.teacher is not None) != (options.model == "deit_mini"):
        parser.error("deit_mini needs --teacher, the other models cannot have one")
    if options.start is not None and options.blocks is None:
        own = build_architecture(options.model).get_submodule("blocks")
        options.blocks = range(len(list(own.children())))
    options.output = options.output or weights_path(options.model)
    return options


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def measure(name: str, weights: Path) -> float:
    """Return top-1 in percent of stored weights on the test set."""
    return round(accuracy(_stored(name, weights), fashion_slice("test")), 2)


def main(arguments: list[str] | None = None) -> None:
    """Train, store the weights in half precision, measure them as stored, write the card."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    command = f"python -m vit_ptq_bench.tasks.training.classifiers {shlex.join(arguments)}"
    if options.measure:
        card = read_card(options.model)
        command = card.command if card else ""
    else:
        train(options)
    top1 = measure(options.model, options.output)
    if options.output == weights_path(options.model):
        write_card(ModelCard(options.model, top1, command))
    print(f"{options.model}: {top1} % top-1 on the test set, {options.output}")


def train(options: argparse.Namespace) -> None:
    """Train a model and store its weights in half precision."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    trainer.run()
    weights = {name: tensor.half() for name, tensor in trainer.model.state_dict().items()}
    save_file(weights, options.output)
    make_ordinary(options.output)
    trainer.checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
