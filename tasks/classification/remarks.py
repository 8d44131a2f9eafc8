"""Words beside a model in the list of models; a list imports neither torch nor timm."""

from __future__ import annotations

IMAGENET_OUTPUTS = 1000


def outputs_remark(model: str, outputs: int) -> str | None:
    """Return what to say of the outputs of a pretrained model, or None: they are classes.

    CLIP's towers end in a projection, and are fine-tuned to ImageNet's classes under names of their own.
    """
    if not outputs:
        return "a backbone without a classifier"
    if "_clip_" in model and "_ft_" not in model:
        return f"a backbone without a classifier ({outputs} outputs of an embedding)"
    if outputs != IMAGENET_OUTPUTS:
        return f"{outputs} classes, and not ImageNet-1k's {IMAGENET_OUTPUTS}: labels of its own"
    return None
