"""The script that wrote ``tasks/classification/imagenet_1k.txt``: ImageNet-1k's classes, from timm.

python -m vit_ptq_bench.tasks.training.imagenet_classes
"""

from __future__ import annotations

from timm.data import ImageNetInfo

from vit_ptq_bench.tasks.classification.label_sets import IMAGENET_FILE


def main() -> None:
    """Write the WordNet ids of ImageNet-1k, one a line, in the order of models' outputs."""
    ids = ImageNetInfo("imagenet-1k").label_names()
    IMAGENET_FILE.write_text("\n".join(ids) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
