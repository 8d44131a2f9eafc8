"""The option to change where a checkpoint's head and the labels are of different numbers of classes."""

from __future__ import annotations

from vit_ptq_bench.tasks.api.options import TaskOptions
from vit_ptq_bench.tasks.classification.label_sets import Labels


def way_out(head: int, outputs: int, labels: Labels, options: TaskOptions, model: str) -> str:
    """Return the rest of a sentence about a head that does not fit, which names the option to change.

    Args:
        head: outputs that the checkpoint has.
        outputs: those that the model was built with.
        labels: as they are without ``num_classes``.
        options: of the task.
        model: its name.
    """
    if "num_classes" in options.model_args.get(model, {}):
        return f"model_args say num_classes = {outputs}: leave it out"
    if labels.classes is None:
        return f"--num-classes says {outputs}: leave it out, or say {head}"
    if options.class_map is not None:
        return (
            f"--class-map names {outputs} classes: it has to name all {head}, one a line, in the order "
            "of the outputs"
        )
    return (
        f"the labels are of {outputs} classes ({labels.form}): for a model of other classes name its "
        f"{head}, in the order of the outputs, with --class-map"
    )
