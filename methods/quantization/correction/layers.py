"""Corrections folded into layers one by one, before each is rounded by whatever rounds it."""

from dataclasses import dataclass

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.correction.regression import HALVES, Regression
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import LayerStreams


def require_halves(images: int) -> None:
    """Refuse fewer images than a correction is fitted to and judged on; raises `MethodError`."""
    if images < HALVES:
        raise MethodError(
            f"a correction needs at least {HALVES} calibration images, for it is judged on images that it "
            f"was not fitted to; got {images}"
        )


@dataclass(frozen=True)
class FoldedCorrection:
    """A `Visit`: lets a layer that writes the residual stream take up what its output lacks (QwT, folded).

    What the layer's target lacks is regressed on its own quantized input, its weight being in floating point
    still; where that removes error on images that the regression was not fitted to, ``W + dW`` and ``b + db``
    stand for the layer from then on. It differs from `Resolve`'s solution in the ridge, in that it is judged,
    and in that layers which read the stream have none.

    Attributes:
        ridge: see `regression.Regression`.
    """

    ridge: float

    def check(self, images: int) -> None:
        """Refuse too few images; raises `MethodError`."""
        require_halves(images)

    def __call__(self, streams: LayerStreams) -> None:
        """Change weight and bias of one layer.

        Raises:
            MethodError: too small a ridge.
        """
        layer = streams.layer
        if not streams.writes:
            return
        matrix, bias = layer.weight.flatten(1), layer.ensure_bias()
        found = Regression(matrix.shape[1], len(matrix), matrix.device)
        for rows in streams.batches():
            images = int(rows.image[-1] - rows.image[0]) + 1  # they are in order
            lack = rows.target - rows.x @ matrix.T - bias
            inputs, errors = (t.reshape(images, -1, t.shape[1]) for t in (rows.x, lack))
            found.add(inputs, errors, rows.weight.reshape(images, -1))
        linear = found.solve(self.ridge)
        if linear is not None:
            layer.weight.add_(linear.weight.to(layer.weight).view_as(layer.weight))
            bias.add_(linear.bias.to(bias))
