"""The recipe of a reconstruction: units, inputs, trainables, losses, schedule; and its checks."""

from collections.abc import Sequence
from dataclasses import dataclass

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.model.layers import QuantOperation
from vit_ptq_bench.methods.quantization.model.structure import Segment, SegmentKind, Structure
from vit_ptq_bench.methods.quantization.reconstruction.activation_trainables import Steps
from vit_ptq_bench.methods.quantization.reconstruction.choices import UnitGranularity, Weighting
from vit_ptq_bench.methods.quantization.reconstruction.losses import (
    BlockError,
    FeatureError,
    LogitDivergence,
    Loss,
    OutputDivergence,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import (
    Clipping,
    Roundings,
    Trainable,
)

INNER_ROLES = ("qkv", "context", "proj", "fc1", "fc2", "reduction")
"""Operations whose outputs the local loss compares."""


@dataclass(frozen=True)
class Recipe:
    """How units are reconstructed.

    Attributes:
        losses: added up.
        trainables: in the order in which they are put into a unit; what none stands for is quantized as it
            is calibrated.
        unit: what is reconstructed at once.
        iterations: per unit.
        batch_size: images per iteration.
        input_mix: probability that an input value comes from the quantized prefix, else it is the
            full-precision model's (QDrop: 0.5, BRECQ: 0).
        keep: probability that an activation inside the unit is quantized while training.
        weighting: ``first``: each loss is divided by its value in the unit's first iteration and
            doubled; ``shared``: all losses by the first loss's; ``running``: each by its running mean;
            ``plain``: as they are.
        rounding_weight: weight of the rounding regulariser.
        warmup: share of the iterations without it.
        rule: calibrates the unit's static activations once it is trained; None: they are.
        holdout: share of the images, drawn by the seed, that is kept from training: on them each unit's loss
            is taken now and then, quantized as it will be, and the unit keeps its best state, at worst
            the one it started with; in the end the whole model goes back to its start unless its prediction
            of them is clearly nearer to full precision (`holdout.clearly_less`); 0: no image.
        crops: views of each image that are trained on besides, see `views.with_views`; 0: none.
        measured_images: most images that losses are measured on in each unit; 0: all that are trained on.
        quantize_weights: whether units end with their weights as codes; else weights stay in floating point,
            as trained.
        untrained: kinds of units in which what the recipe trains keeps the values that it starts with.
        keep_open: whether weights that were trained through their rounding stay in floating point behind it,
            quantized by their quantizers, for another reconstruction to go on from; it needs a teacher.
    """

    losses: Sequence[Loss] = (BlockError(),)
    trainables: Sequence[Trainable] = (Roundings(), Steps())
    unit: UnitGranularity = "block"
    iterations: int = 2000
    batch_size: int = 32
    input_mix: float = 0.5
    keep: float = 0.5
    weighting: Weighting = "first"
    rounding_weight: float = 0.01
    warmup: float = 0.2
    rule: RangeRule | None = None
    holdout: float = 0.0
    crops: int = 0
    measured_images: int = 0
    quantize_weights: bool = True
    untrained: Sequence[SegmentKind] = ()
    keep_open: bool = False

    def held_out(self, images: int) -> int:
        """Return how many of so many images are kept from training."""
        return 0 if self.holdout <= 0 else max(1, round(images * self.holdout))

    def check(self, structure: Structure, images: int) -> None:
        """Refuse what cannot work before any work is done.

        Raises:
            MethodError: too few images, a setting out of range, or losses that the units cannot give.
        """
        self._check_images(structure)
        self._check_schedule(images)
        if self.unit == "layer":
            self._check_layers()
        if self.keep_open:
            self.check_open()
        if any(loss.needs_inner for loss in self.losses):
            _check_inner(structure)

    def _check_schedule(self, images: int) -> None:
        if self.iterations < 0 or self.batch_size < 1:
            raise MethodError(
                "reconstruction needs iterations >= 0 and batch_size >= 1",
                parameter="iterations" if self.iterations < 0 else "batch_size",
            )
        trained = (images - self.held_out(images)) * (1 + self.crops)
        if trained < self.batch_size:
            held = f" to train on ({self.held_out(images)} held out)" if self.holdout > 0 else ""
            raise MethodError(
                f"reconstruction in batches of {self.batch_size} images needs at least as many "
                f"calibration images, got {trained}{held}; use more images or a smaller batch_size",
                parameter="batch_size",
            )

    def _check_images(self, structure: Structure) -> None:
        if not 0 <= self.holdout < 1 or self.crops < 0:
            raise MethodError(
                "reconstruction needs 0 <= holdout < 1 and crops >= 0",
                parameter="crops" if self.crops < 0 else "holdout",
            )
        if self.crops and structure.tail is not None:
            raise MethodError(
                "a detector's images are padded to one size, and a crop of padding shows nothing: crops are "
                "for classifiers; use crops = 0",
                parameter="crops",
            )
        if self.unit == "pair" and self.rule is not None:
            raise MethodError(
                "the second block of a pair is trained again, so its activations cannot be calibrated "
                "after the first time; use another unit",
                parameter="unit",
            )
        if self.holdout > 0 and self.rule is not None:
            raise MethodError(
                "activations that are calibrated after training cannot be judged on held-out images; "
                "use holdout = 0",
                parameter="holdout",
            )

    def check_open(self) -> None:
        """Refuse what leaves no weights in floating point to go on from.

        Raises:
            MethodError: roundings or clipping are trained, or activations calibrated afterwards.
        """
        if self.rule is not None or any(
            isinstance(t, Roundings | Clipping) for t in self.trainables
        ):
            raise MethodError(
                "only weights that are trained through their rounding, with activations calibrated before, "
                "stay open for another reconstruction; train weights, without a rule"
            )

    def _check_layers(self) -> None:
        """Refuse losses that need more than the output of one layer."""
        wide = [
            type(loss).__name__
            for loss in self.losses
            if loss.needs_clean
            or loss.needs_inner
            or loss.needs_importance
            or loss.needs_features
            or loss.is_measured
            or loss.of_model
        ]
        if wide:
            raise MethodError(
                f"units of one layer cannot give {', '.join(wide)}; use another unit",
                parameter="unit",
            )


def _check_inner(structure: Structure) -> None:
    """Refuse blocks in which a loss on inner layers would find none."""
    for segment in structure.segments:
        if segment.kind == "block" and not inner_operations(segment):
            raise MethodError(
                f"{segment.name} has none of the layers {', '.join(INNER_ROLES)} "
                "whose outputs the local loss compares"
            )


def inner_operations(segment: Segment) -> list[QuantOperation]:
    """Return the operations of a segment whose outputs a loss on inner layers compares."""
    return [op for op in segment.operations if op.role in INNER_ROLES]


def losses_of(segment: Segment, losses: Sequence[Loss]) -> list[Loss]:
    """Return the losses that count in a segment.

    The head gives the logits, so KL on them alone; the whole model as one unit what the model says, so the
    losses on that, or by default the penultimate feature's error and the prediction's divergence.
    """
    if segment.kind == "head":
        return [LogitDivergence()]
    if segment.kind == "model":
        known = [loss for loss in losses if loss.weight > 0 and loss.of_model]
        return known or [FeatureError(), OutputDivergence()]
    inner = inner_operations(segment)
    return [loss for loss in losses if loss.weight > 0 and (inner or not loss.needs_inner)]
