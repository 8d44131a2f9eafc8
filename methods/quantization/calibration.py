"""Calibration data, and passes over it that show every quantizer its input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from methods.errors import MethodError
from methods.quantization.memory import available, require
from methods.quantization.model import QuantizedModel, Site
from methods.quantization.sharing import Shared


class Progress(Protocol):
    """Is told how far a calibration is."""

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """``done`` of ``total`` steps are finished; ``stage`` names the part under way, if any."""


RANGE_IMAGES, LEAST_RANGE_IMAGES = 128, 4
"""Most and fewest images that a reconstruction takes ranges from, and the scales of attention maps.

A pass over more takes many gigabytes, and the steps are learned from all images afterwards.
"""

RANGE_BYTES = 4 * 10**8
"""Of the largest activation of those images, where they are more than the fewest: a detector's image of 800 x
1216 pixels shows as many tokens as 300 of a classifier, and takes as much."""

AT_ONCE = 5
"""Copies of the largest activation that exist at once in a pass: what it is made from, itself, sorted or
quantized, and what a rule compares."""

AMPLE = 80
"""Times the images' bytes that no pass of a known family needs."""

SHARED_ROLES = ("rpn_head",)
"""Roles of layers that a detector applies to several feature maps, one after the other."""

Rule = Callable[[Site, Tensor], None]
"""Sets the parameters of one site's quantizer, given the tensor that arrives there."""


class Calibration:
    """The calibration set of one run.

    Attributes:
        batches: what ``model(batch)`` accepts; for classification float tensors [b, 3, H, W].
        seed: seed of the run; every random choice of a method draws from `generator`.
        shared: holds what other calibrations on the same images have computed; None: nothing is shared.
    """

    def __init__(
        self, batches: Sequence[Tensor], seed: int = 0, shared: Shared | None = None
    ) -> None:
        self.batches = [batch for batch in batches if len(batch)]
        self.seed = seed
        self.shared = shared
        if not self.batches:
            raise MethodError("the calibration set is empty; ask for at least one image")

    @property
    def n_images(self) -> int:
        """Number of images."""
        return sum(len(batch) for batch in self.batches)

    def generator(self) -> torch.Generator:
        """Return a CPU generator with the run's seed, always in the same state."""
        return torch.Generator().manual_seed(self.seed)

    def to(self, device: torch.device) -> "Calibration":
        """Return the same set on another device."""
        return Calibration([b.to(device) for b in self.batches], self.seed, self.shared)

    def whole(self) -> Tensor:
        """Return all images as one batch.

        Ranges and percentiles are exact only over all images at once, and the largest activation of
        one layer is small beside what a backward pass keeps, so range calibration uses this.
        """
        return self.batches[0] if len(self.batches) == 1 else torch.cat(self.batches)

    def first(self, images: int) -> "Calibration":
        """Return the first ``images`` of the set."""
        if images >= self.n_images:
            return self
        return Calibration([self.whole()[:images]], self.seed, self.shared)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield mini-batches of at most ``size`` images."""
        yield from self.whole().split(size)


@contextmanager
def hooks(handles: ExitStack | None = None) -> Iterator[ExitStack]:
    """Collect hook handles and remove them at the end, whatever happens."""
    with ExitStack() as stack:
        yield handles or stack


def _watch(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    stack.callback(module.register_forward_pre_hook(hook).remove)


@torch.no_grad()
def calibrate_activations(
    model: QuantizedModel,
    calibration: Calibration,
    rule: Rule,
    sequential: bool = False,
    progress: Progress | None = None,
) -> None:
    """Apply ``rule`` to every activation site in one forward pass over the calibration images.

    Args:
        model: the wrapped model; quantizers that are active stay so.
        calibration: the images.
        rule: called once per site with the whole calibration set's tensor.
        sequential: switch each quantizer on as soon as it is calibrated, so that later sites see
            quantized inputs (RepQ-ViT); otherwise later sites see what the model gives now.
        progress: called after each site.

    Raises:
        MethodError: NaN or infinite activations; the site is named.
    """
    _require_room(model, calibration)
    calibrate_sites(
        list(model.sites()), lambda: model(calibration.whole()), rule, sequential, progress
    )


def _require_room(model: QuantizedModel, calibration: Calibration) -> None:
    """Refuse a pass over all images that cannot fit, before it starts.

    What it takes is known from one image, which is looked at only where it could be too much.
    """
    image = calibration.batches[0][:1]
    if calibration.n_images * image.numel() * 4 * AMPLE < available(image.device):
        return
    need = calibration.n_images * (AT_ONCE * _largest_activation(model, image) + 4 * image.numel())
    require(need, image.device, f"one pass over {calibration.n_images} calibration images")


@torch.no_grad()
def _largest_activation(model: QuantizedModel, image: Tensor) -> int:
    """Bytes of the largest tensor that a quantizer sees of one image."""
    largest = 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].numel() * inputs[0].element_size())

    with ExitStack() as stack:
        for site in model.sites():
            if not site.is_weight:
                _watch(stack, site.quantizer, watch)
        model(image)
    return largest


def range_images(model: QuantizedModel, calibration: Calibration) -> int:
    """Return how many images a reconstruction takes ranges from: what fits `RANGE_BYTES`, within bounds.

    It depends on model and images alone, not on the machine, for so do the ranges.
    """
    count = calibration.n_images
    if count <= LEAST_RANGE_IMAGES:
        return count
    fitting = RANGE_BYTES // _largest_activation(model, calibration.batches[0][:1])
    return min(count, max(LEAST_RANGE_IMAGES, min(RANGE_IMAGES, fitting)))


@torch.no_grad()
def calibrate_sites(
    sites: Sequence[Site],
    run: Callable[[], Any],
    rule: Rule,
    sequential: bool,
    progress: Progress | None = None,
) -> None:
    """Apply ``rule`` to those of ``sites`` that are activations with parameters, while ``run`` runs.

    Arguments and errors as in `calibrate_activations`.
    """
    sites = [site for site in sites if not site.is_weight and needs_calibration(site)]
    seen: set[str] = set()
    with hooks() as stack:
        for site in sites:
            _watch(
                stack, site.quantizer, _Visitor(site, rule, sequential, seen, progress, len(sites))
            )
        run()
    unseen = [site.name for site in sites if site.name not in seen]
    if unseen:
        raise MethodError(
            f"the forward pass never reached {unseen[:5]}; the model is not supported"
        )


def needs_calibration(site: Site) -> bool:
    """Whether a site has parameters that calibration must set."""
    return not site.quantizer.spec.is_float and not site.quantizer.spec.dynamic


class _Visitor:
    """Forward pre-hook of one quantizer."""

    def __init__(
        self,
        site: Site,
        rule: Rule,
        sequential: bool,
        seen: set[str],
        progress: Progress | None,
        total: int,
    ) -> None:
        self.site, self.rule, self.sequential = site, rule, sequential
        self.seen, self.progress, self.total = seen, progress, total
        self._parts: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        check_finite(inputs[0], self.site.name)
        self.rule(self.site, self._joined(inputs[0]))
        self.seen.add(self.site.name)
        self.site.quantizer.active |= self.sequential
        if self.progress is not None:
            self.progress(len(self.seen), self.total)

    def _joined(self, x: Tensor) -> Tensor:
        """What arrived so far: the maps of all levels [B, C, H, W] in a row, where a layer sees several."""
        if self.site.operation.role not in SHARED_ROLES:
            return x
        self._parts.append(x.detach().flatten(2).unsqueeze(-1))
        return torch.cat(self._parts, dim=2)


def check_finite(x: Tensor, site: str) -> None:
    """Raise `MethodError` naming the site if ``x`` has NaN or infinite values."""
    low, high = torch.aminmax(x)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise MethodError(
            f"{site}: NaN or infinite values during calibration; check the checkpoint and the images"
        )


@torch.no_grad()
def calibrate_weights(model: QuantizedModel, rule: Rule) -> None:
    """Apply ``rule`` to every weight site."""
    for site in model.sites():
        if site.is_weight and needs_calibration(site):
            weight = site.operation.operands((torch.empty(0),))[1]
            check_finite(weight, site.name)
            rule(site, weight)
