"""`bench convert`: other people's checkpoints, annotations and images in the forms that the tasks read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "convert",
        help="convert a training checkpoint, VOC or YOLO annotations, or a folder of images",
        description="Convert an OpenMMLab training checkpoint to safetensors, a data set in VOC's or "
        "YOLO's layout to COCO's, or a folder of images named by their WordNet ids into one half to "
        "calibrate and one to judge (halves).",
    )
    parser.set_defaults(function=run)
    parser.add_argument("kind", choices=("checkpoint", "voc", "yolo", "halves"))
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="checkpoint file, or data set folder (yolo: or its YAML file)",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="safetensors file, or folder for the task"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a pickled checkpoint although that runs what is written in it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, say what came out, and return the exit status."""
    if arguments.kind == "checkpoint":
        return _checkpoint(arguments)
    try:
        return _images(arguments) if arguments.kind == "halves" else _boxes(arguments)
    except OSError as error:  # no room, no right to write, a name that no file can have
        place = str(error.filename or arguments.out)
        raise BenchError(
            f"{place[:200]}: {error.strerror or error}; nothing was converted"
        ) from error


def _images(arguments: argparse.Namespace) -> int:
    from vit_ptq_bench.tasks.classification.halves import convert_halves

    for part, images in convert_halves(arguments.source, arguments.out).items():
        print(f"{arguments.out / part}: {images} images")
    return 0


def _boxes(arguments: argparse.Namespace) -> int:
    from vit_ptq_bench.tasks.detection.voc import convert_voc
    from vit_ptq_bench.tasks.detection.yolo import convert_yolo

    convert = convert_voc if arguments.kind == "voc" else convert_yolo
    for part in convert(arguments.source, arguments.out):
        counts = [f"{part.images} images", f"{part.objects} objects"]
        counts += [f"{part.masks} with outlines"] if part.masks else []
        counts += [f"{part.empty} images without objects"] if part.empty else []
        counts += [f"{part.dropped} boxes of no size left out"] if part.dropped else []
        counts += [f"{part.repeated} repeated objects left out"] if part.repeated else []
        print(f"{arguments.out / part.name}: {', '.join(counts)}")
    return 0


def _checkpoint(arguments: argparse.Namespace) -> int:
    if not arguments.trust:
        raise BenchError(
            f"{arguments.source}: a training checkpoint is a program that runs when it is read; if you "
            "trust where it comes from, repeat the command with --trust"
        )
    if arguments.out.suffix != ".safetensors":
        raise BenchError(f"{arguments.out}: the name of the output must end in .safetensors")
    from vit_ptq_bench.tasks.detection.unpickle import convert_checkpoint

    weights = convert_checkpoint(arguments.source, arguments.out)
    print(f"{arguments.out}: weights of {arguments.source} ({weights.identity})")
    for note in weights.notes:
        print(note)
    return 0
