"""Train a bundled model: ``python -m vit_ptq_bench.tasks.training.classifiers swin_mini``.

Pictures are rendered anew all the time from the training pool. They start as plain white digits on
black and become harder by one step whenever the model reads enough of them; a transformer that starts
on the final pictures stays at chance for very long. LayerNorm gains start
log-normal: large pretrained transformers have a few dominant channels (the input of a linear layer of
ViT-Tiny spans 13 to 31 standard deviations), and small models trained for minutes do not grow them.
Nothing is selected on the test set: the last weights are kept, and the test set is read once, at the
end, for the model's card.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vit_ptq_bench.tasks.classification.digit_rendering import (
    CLUTTER,
    render,
    test_set,
    training_pools,
)
from vit_ptq_bench.tasks.classification.normalisation import digit_batches, labelled_batches
from vit_ptq_bench.tasks.classification.zoo import ARCHITECTURES, build_architecture
from vit_ptq_bench.tasks.storage.model_cards import (
    ModelCard,
    read_card,
    weights_path,
    write_card,
)
from vit_ptq_bench.tasks.storage.weights import load_weights

BATCH = 64

ROUND = 1600
"""Pictures rendered at a time; the clutter is decided after each round."""

CLUTTER_STEP = 0.02

READS_ENOUGH = 0.6

WARMUP = 4000

CHECKPOINT_ROUNDS = 10

GAIN_SPREAD = 1.0
"""Standard deviation of the logarithm of the LayerNorm gains at the start."""


@dataclass
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        seen: pictures trained on.
        clutter: of the pictures being rendered now.
    """

    seen: int = 0
    clutter: float = 0.0


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return top-1 in percent."""
    model.eval()
    predictions = [model(part).argmax(1) for part in digit_batches(pictures, 200)]
    return 100 * float((torch.cat(predictions).numpy() == labels).mean())


@torch.no_grad()
def spread_gains(model: nn.Module) -> None:
    """Draw every LayerNorm gain from a log-normal distribution."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.normal_(0, GAIN_SPREAD).exp_()


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
    """Return the loss and the number of pictures read correctly.

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


class Trainer:
    """Trains one model, round by round, and keeps a checkpoint it can go on from."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.model = build_architecture(options.model)
        spread_gains(self.model)
        self.teacher = _teacher(options.teacher)
        if isinstance(self.model, VisionTransformerDistilled):
            self.model.set_distilled_training(True)
        self.optimizer = build_optimizer(self.model, options.lr)
        self.progress = TrainingProgress()
        self.checkpoint = Path(options.output).with_suffix(".checkpoint.pt")
        self.fit, self.validation = training_pools()

    def run(self) -> None:
        """Train to the end, from the checkpoint if there is one."""
        self._resume()
        watch = render(self.validation, 600, np.random.default_rng(1))
        started = time.monotonic()
        while self.progress.seen < self.options.images:
            hits = self._round()
            if hits > READS_ENOUGH:
                self.progress.clutter = min(
                    self.options.hardest, self.progress.clutter + CLUTTER_STEP
                )
            if self.progress.seen >= self.options.settle * self.options.images:
                self.progress.clutter = CLUTTER
            if self.progress.seen // ROUND % CHECKPOINT_ROUNDS == 0:
                self._save()
                seconds = time.monotonic() - started
                print(
                    f"{self.progress.seen:7d} images, clutter {self.progress.clutter:.2f}, "
                    f"train {100 * hits:.1f} %, validation {accuracy(self.model, *watch):.1f} %, "
                    f"{seconds:.0f} s",
                    flush=True,
                )

    def _round(self) -> float:
        self.model.train()
        # The generator depends on the round alone, so a resumed run sees the same pictures.
        rng = np.random.default_rng([self.options.seed, self.progress.seen])
        pictures, labels = render(self.fit, ROUND, rng, self.progress.clutter)
        hits = sum(self._step(*batch) for batch in labelled_batches(pictures, labels, BATCH))
        return hits / ROUND

    def _step(self, images: Tensor, labels: Tensor) -> int:
        rate = learning_rate(self.options.lr, self.progress.seen, self.options.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, hits = loss_and_hits(self.model, self.teacher, images, labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.progress.seen += len(labels)
        return hits

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
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
        self.progress = TrainingProgress(**state["progress"])


def _teacher(name: str | None) -> nn.Module | None:
    return None if name is None else _stored(name, weights_path(name))


def _stored(name: str, weights: Path) -> nn.Module:
    """A bundled architecture with stored weights, in float32."""
    model = build_architecture(name)
    load_weights(model, weights)
    return model


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a bundled model on the bundled digits.")
    parser.add_argument("model", choices=list(ARCHITECTURES))
    parser.add_argument("--images", type=int, default=200_000, help="pictures to train on")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--hardest", type=float, default=0.4, help="clutter to rise to, 0 to 1")
    parser.add_argument(
        "--settle",
        type=float,
        default=1.0,
        help="share of the pictures after which all have the benchmark's clutter",
    )
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
    if (options.teacher is not None) != (options.model == "deit_mini"):
        parser.error("deit_mini needs --teacher, the other models cannot have one")
    options.output = options.output or weights_path(options.model)
    return options


def measure(name: str, weights: Path) -> float:
    """Return top-1 in percent of stored weights on the test set."""
    return round(accuracy(_stored(name, weights), *test_set()), 2)


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
    trainer.checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
