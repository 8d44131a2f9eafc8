"""Train a bundled detector with mmengine.

``python -m vit_ptq_bench.tasks.training.detectors mask_rcnn_swin_mini``

Without ``--data`` the training scenes are drawn anew from the training digits; with it any data set in COCO's
form trains the same small detector, and its config is written beside the weights. LayerNorm gains start
log-normal, as those of the bundled classifiers (`training.classifiers`), and nothing is selected on the
validation images: the last weights are kept.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import nn

from vit_ptq_bench.permissions import make_ordinary
from vit_ptq_bench.tasks.detection.data import CocoFiles, read_coco
from vit_ptq_bench.tasks.detection.datasets import build_dataset, training_pipeline
from vit_ptq_bench.tasks.detection.digits import source_pools
from vit_ptq_bench.tasks.detection.models import build_detector, read_config, set_classes
from vit_ptq_bench.tasks.detection.scene_rendering import SIZE, write_scenes
from vit_ptq_bench.tasks.detection.zoo import BUNDLED, config_path
from vit_ptq_bench.tasks.scenes import Scenes
from vit_ptq_bench.tasks.storage.checkpoints import read_state_dict
from vit_ptq_bench.tasks.storage.model_cards import (
    ModelCard,
    read_card,
    weights_path,
    write_card,
)
from vit_ptq_bench.tasks.training.classifiers import spread_gains

SCENES = 6000

WARMUP = 300

SAVE_EVERY = 100


def training_scenes(folder: Path, n: int) -> CocoFiles:
    """Draw ``n`` scenes of the training digits into ``folder``, unless they are there."""
    annotations = folder / "annotations.json"
    if not annotations.is_file():
        annotations = write_scenes(folder, source_pools()[0], n, seed=0)
    return read_coco(annotations, folder)


def start_from(model: nn.Module, path: Path) -> None:
    """Take from a weights file every tensor that the model has by the same name and shape."""
    own = model.state_dict()
    taken = {
        name: tensor
        for name, tensor in read_state_dict(path).items()
        if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(taken, strict=False)
    print(f"{len(taken)} of {len(own)} tensors start from {path}")


class Checkpoints(Hook):  # type: ignore[misc]  # mmengine has no types
    """Saves and restores by tensors and numbers alone, which torch loads without running anything.

    mmengine's own checkpoint hook stores its logs as Python objects.
    """

    priority = "LOWEST"

    def __init__(self, path: Path) -> None:
        self.path = path

    def before_train(self, runner: Any) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, weights_only=True)
        runner.model.load_state_dict(state["model"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers, state["rates"], strict=True):
            scheduler.load_state_dict(saved)
        runner.train_loop._iter = state["iteration"]
        runner.logger.info(f"goes on from iteration {state['iteration']}")

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        """Save every `SAVE_EVERY` iterations."""
        if (runner.iter + 1) % SAVE_EVERY:
            return
        state = {
            "model": runner.model.state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "rates": [scheduler.state_dict() for scheduler in runner.param_schedulers],
            "iteration": runner.iter + 1,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


class Trainer:
    """Runs mmengine's Runner, and keeps a checkpoint that it can go on from."""

    def __init__(self, options: argparse.Namespace, files: CocoFiles, folder: Path) -> None:
        torch.manual_seed(options.seed)
        self.options, self.files, self.folder = options, files, folder
        self.checkpoint = folder / "checkpoint.pt"
        config = read_config(config_path(options.model))
        set_classes(config.model, len(files.classes), files.has_masks)
        size = (options.size, options.size)
        config.test_pipeline = [{"type": "Resize", "scale": size, "keep_ratio": True}]
        self.config = config
        self.model = build_detector(config)
        model: Any = self.model
        model.init_weights()
        spread_gains(model.backbone)
        if options.start is not None:
            start_from(model, options.start)

    def run(self) -> nn.Module:
        """Train to the end and return the detector."""
        runner = Runner(
            model=self.model,
            work_dir=str(self.folder / "runner"),
            train_dataloader=self._loader(),
            train_cfg={"by_epoch": False, "max_iters": self.options.iterations},
            optim_wrapper=self._optimizer(),
            param_scheduler=self._schedule(),
            default_hooks={"checkpoint": None, "logger": {"type": "LoggerHook", "interval": 50}},
            custom_hooks=[Checkpoints(self.checkpoint)],
            default_scope="mmdet",
            randomness={"seed": self.options.seed},
            log_level="INFO",
        )
        runner.train()
        return self.model.eval()

    def _loader(self) -> dict[str, Any]:
        options = self.options
        pipeline = training_pipeline((options.size, options.size), self.files.has_masks)
        return {
            "batch_size": options.batch_size,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": options.seed},
            "collate_fn": {"type": "pseudo_collate"},
            "dataset": build_dataset(self.files, pipeline),
        }

    def _optimizer(self) -> dict[str, Any]:
        return {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": self.options.lr, "weight_decay": 0.05},
            "paramwise_cfg": {
                "norm_decay_mult": 0.0,
                "bias_decay_mult": 0.0,
                "custom_keys": {"relative_position_bias_table": {"decay_mult": 0.0}},
            },
            "clip_grad": {"max_norm": 10.0},
        }

    def _schedule(self) -> list[dict[str, Any]]:
        warmup = min(WARMUP, self.options.iterations // 4)
        common = {"by_epoch": False}
        rise = {"type": "LinearLR", "start_factor": 0.01, "begin": 0, "end": warmup}
        fall = {
            "type": "CosineAnnealingLR",
            "T_max": self.options.iterations - warmup,
            "begin": warmup,
            "end": self.options.iterations,
            "eta_min": 0.0,
        }
        return [rise | common, fall | common] if warmup else [fall | common]


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a bundled detector.")
    parser.add_argument("model", choices=BUNDLED)
    parser.add_argument(
        "--work", type=Path, help="folder for scenes and checkpoints (default: output/train/MODEL)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="safetensors file to write (default: the model's place in the package)",
    )
    parser.add_argument("--start", type=Path, help="weights to start from, where they fit")
    parser.add_argument("--data", type=Path, help="COCO annotations (JSON) to train on instead")
    parser.add_argument("--images", type=Path, help="their images; default: the JSON's folder")
    parser.add_argument("--size", type=int, default=SIZE, help="longest side of an image")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--measure", action="store_true", help="train nothing, measure the stored weights again"
    )
    options = parser.parse_args(arguments)
    if options.data is not None and options.output is None:
        parser.error("weights for another data set need a file of their own: give --output")
    options.work = options.work or Path("output") / "train" / options.model
    options.output = options.output or weights_path(options.model)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, store the weights in half precision, measure a bundled model as stored, write its card."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    command = f"python -m vit_ptq_bench.tasks.training.detectors {shlex.join(arguments)}"
    if options.measure:
        card = read_card(options.model)
        command = card.command if card else ""
    else:
        train(options)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")
    if options.output == weights_path(options.model):
        figure = measure(options.model)
        write_card(ModelCard(options.model, figure, command, "box_ap"))
        print(f"{options.model}: box AP {figure} % on the validation scenes")


def train(options: argparse.Namespace) -> None:
    """Train a detector and store its weights in half precision."""
    options.work.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        files = training_scenes(options.work / "scenes", options.scenes)
    else:
        files = read_coco(options.data, options.images or options.data.parent)
    trainer = Trainer(options, files, options.work)
    module = trainer.run()
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in module.state_dict().items()
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, options.output)
    make_ordinary(options.output)
    if options.data is not None:
        config_file = options.output.with_suffix(".py")
        trainer.config.dump(config_file)
        print(f"{config_file}: its config, for `models` of a suite with task coco")


def measure(model: str) -> float:
    """Return the box AP in percent of a bundled model's stored weights on the validation scenes."""
    task = Scenes()
    loaded = task.load_model(model)
    evaluation = task.evaluate(loaded.module, loaded, torch.device("cpu"))
    return round(evaluation.metrics["box_ap"], 2)


if __name__ == "__main__":
    main()
