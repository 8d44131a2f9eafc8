"""The ImageNet-1k task: timm models on the user's own images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_ptq_bench.tasks import classification, storage
from vit_ptq_bench.tasks.api.network import Network
from vit_ptq_bench.tasks.api.registry import register_task
from vit_ptq_bench.tasks.api.selection import drawn, subset
from vit_ptq_bench.tasks.api.task import Evaluation, EvaluationProgress, ImageForm, LoadedModel
from vit_ptq_bench.tasks.api.transfer import wants_pinned
from vit_ptq_bench.tasks.classification.contents import Contents, contents_id
from vit_ptq_bench.tasks.classification.image_folder import FolderCalibration
from vit_ptq_bench.tasks.classification.image_listing import Sample, in_stored_order
from vit_ptq_bench.tasks.classification.labelled_images import LabelledImages
from vit_ptq_bench.tasks.classification.references import REFERENCES
from vit_ptq_bench.tasks.classification.remarks import IMAGENET_OUTPUTS
from vit_ptq_bench.tasks.classification.sources import Source, Training, source_of
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.contents import Stored

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vit_ptq_bench.tasks.classification.image_cache import CachedImages

FULL_VALIDATION = 50_000

HOLDOUT_SEED = 20_240_609

ARCHITECTURES = frozenset(name.partition(".")[0] for name in REFERENCES)
"""Of these timm need not be asked whether it knows them."""

FAMILIES = (
    *("vit_*", "deit_*", "deit3_*", "swin_*", "swinv2_*"),
    *("aimv2_*", "beit_*", "beit3_*", "beitv2_*", "eva_*", "eva02_*", "flexivit_*", "test_vit*"),
)
"""timm's names of pretrained models to list; `bench list models --supported` leaves out what is not known."""


@register_task
class ImageNet(FolderCalibration):
    """Classify the ImageNet-1k validation images with a timm model.

    ``data_dir`` holds ``train/<class>/<image>`` and ``val/<class>/<image>``, or flat images in ``val``
    with ``val_labels``, or parquet shards. Preprocessing is timm's own for each model. Calibration images
    come from the training images, drawn by seed, with the evaluation's transform. Any timm name works; a
    name of a pretrained tag downloads its weights unless ``checkpoint`` gives a file. With ``holdout`` half
    of the training images, always the same, are judged on instead, and calibration draws from the other half.
    Labels are WordNet ids of ImageNet-1k, indices, names of ``class_map``, or the names of the class
    folders in sorted order; see docs/data.md.
    """

    name = "imagenet"
    version = 2
    metrics = ("top1", "top5")
    metric_titles = {"top5": "top5"}
    outcomes_metric = "top1"
    takes_model_args = True

    def model_names(self) -> list[str]:
        """Return timm's pretrained tags of the supported families."""
        return list(self._listed)

    def unlisted_names(self, pattern: str) -> list[str]:
        """Return timm's other pretrained tags that a glob matches."""
        return classification.pretrained_names([pattern])

    def model_remark(self, model: str) -> str | None:
        """Return what the outputs of a listed model are, where they are not ImageNet-1k's classes."""
        return classification.outputs_remark(model, int(self._listed.get(model, "1000")))

    def knows_model(self, model: str) -> bool:
        """Whether timm has an architecture of that name, with or without a tag."""
        return model.partition(".")[0] in ARCHITECTURES or classification.is_architecture(model)

    def weights_id(self, model: str) -> str:
        """Return the checkpoint's hash, or timm's full name of the pretrained weights."""
        checkpoint = self.options.weights_of(model)
        if checkpoint is not None:
            return self._as_built(storage.file_id(checkpoint), model)
        self.require_model(model)
        name = model if "." in model else classification.full_name(model)
        return self._as_built(f"timm:{name}", model)

    def data_id(self) -> str:
        """Return a hash over contents and labels of the images to judge, and names of the training images."""
        judged = self._chosen
        contents = self._contents.of([path for path, _ in judged])
        labels = [label for _, label in judged]
        names = self._train.identity if self._train else ""
        holdout = ":holdout" if self.options.holdout else ""
        return contents_id(contents, labels, names) + holdout

    def calibration_id(self, n: int, seed: int) -> str | None:
        """Return a hash over the contents of the training images drawn; None: there are fewer than ``n``."""
        if self._train is None or n > len(self._pool):
            return None
        return contents_id(self._contents.of(self._drawn(n, seed)))

    def training_images(self) -> int:
        """Return how many training images there are, or half of them where the others are judged on."""
        return len(self._pool)

    def weights_problem(self, model: str) -> str | None:
        """Return why the checkpoint's tensors do not fit the model, or its outputs the labels."""
        labels = self._judged.labels
        if self.options.weights_of(model) is None:
            if not self._weights_source(model):
                return "timm has no pretrained weights of it; give a file with --checkpoint"
            return self._outputs_problem(model)
        facts = (self.weights_id(model), self.data_id(), str(labels.classes), *self._judged.notes)
        return storage.loading_problem(lambda: self.load_model(model), self.name, model, *facts)

    def weights_to_fetch(self, model: str) -> str | None:
        """Return where timm would fetch weights from; None: a checkpoint or a cache has them."""
        if self.options.weights_of(model) is not None:
            return None
        source = self._weights_source(model)
        if classification.is_on_this_machine(source):
            return None
        return classification.place_of(source)

    def evaluated_images(self) -> int:
        """Return how many images are judged on, of a subset or a half of the data so many less."""
        return len(self._chosen)

    def data_notes(self) -> tuple[str, ...]:
        """Return how the labels were read, and what was left out."""
        if self._train is None or self.options.holdout:
            return self._judged.notes
        return (*self._judged.notes, *self._train.notes)

    def load_model(self, model: str) -> LoadedModel:
        """Build a timm model with its pretrained weights or those of the checkpoint."""
        self.require_model(model)
        checkpoint = self.options.weights_of(model)
        if checkpoint is None:
            module = classification.create_pretrained(model, self._arguments(model))
            self._require_outputs(module, model)
            return self._with_reference(model, module)
        held = storage.read_checkpoint(checkpoint)
        module, notes, remark = self._untrained(model, held)
        try:
            weights = storage.load_weights(module, held, classification.adapted_state)
        except TaskError as error:
            raise TaskError(f"{error}{remark}") from error
        self._require_outputs(module, model)
        identity = self._as_built(weights.identity, model)
        return LoadedModel(model, module.eval(), weights=identity, notes=(*notes, *weights.notes))

    @classmethod
    def model_arguments(cls, weights: str | None) -> Mapping[str, Any]:
        """Return the arguments that stand behind the weights."""
        _, found, arguments = (weights or "").partition(" {")
        told: dict[str, Any] = json.loads("{" + arguments) if found else {}
        return told

    def licence(self, model: str) -> str | None:
        """Return what timm says of its weights; of weights of the user's own what their file states."""
        return storage.stated_licence(self.options.weights_of(model), classification.licence(model))

    def network(self, loaded: LoadedModel) -> Network:
        """Return timm's name, the arguments with the number of outputs, and timm's data config."""
        arguments = {**self._arguments(loaded.name), "num_classes": _outputs(loaded.module)}
        return classification.describe_timm(loaded.name, arguments, loaded.module)

    def untrained(self, model: str, network: Network, at_most: int | None = None) -> LoadedModel:
        """Build the timm model that a file describes, with the file's preprocessing."""
        return LoadedModel(model, classification.build_timm(network, at_most))

    def calibration_batches(self, loaded: LoadedModel, n: int, seed: int) -> list[Tensor]:
        """Draw ``n`` training images without replacement."""
        paths = self._drawn(n, seed)
        return self.read_images(loaded, paths, self._contents.of(paths))

    def read_images(
        self, loaded: LoadedModel, paths: Sequence[Stored], contents: Sequence[str]
    ) -> list[Tensor]:
        """Read images with the transform of the evaluation."""
        samples = [(path, 0) for path in paths]
        return [images for images, _ in self._images(samples, loaded, contents=contents)]

    def image_form(self, loaded: LoadedModel) -> ImageForm:
        """Return size and normalisation of timm's data config of the model."""
        config, _ = classification.preprocessing(loaded.module)
        _, height, width = config["input_size"]
        return ImageForm((height, width), tuple(config["mean"]), tuple(config["std"]))

    def architecture(self, model: str) -> str | None:
        """Return timm's name without the tag and the arguments; None: PTQ papers report the model."""
        name, arguments = model.partition(".")[0], self._arguments(model)
        if name in ARCHITECTURES and not arguments:
            return None
        return f"{name} {json.dumps(arguments, sort_keys=True)}"

    def skeleton(self, model: str) -> nn.Module:
        """Build a timm model on the meta device."""
        self.require_model(model)
        return classification.create_skeleton(model, self._arguments(model))

    def operations(self, model: str) -> int:
        """Return the multiply-accumulates of one image of the size in timm's configuration."""
        self.require_model(model)
        arguments = self._arguments(model)
        return classification.multiply_accumulates(
            lambda: classification.create_untrained(model, arguments=arguments)
        )

    def evaluate(
        self,
        module: nn.Module,
        loaded: LoadedModel,
        device: torch.device,
        progress: EvaluationProgress | None = None,
    ) -> Evaluation:
        """Classify the validation images."""
        self._require_outputs(loaded.module, loaded.name)
        images = self._images(
            self._chosen, loaded, self.options.loader_workers, pinned=wants_pinned(device)
        )
        return classification.classify(module, images, device, len(self._chosen), progress)

    def _images(
        self,
        samples: Sequence[Sample],
        loaded: LoadedModel,
        loader_workers: int = 0,
        contents: Sequence[str] | None = None,
        pinned: bool = False,
    ) -> CachedImages:
        config, transform = classification.preprocessing(loaded.module)
        contents = contents or self._contents.of([path for path, _ in samples])
        files = classification.ImageFiles(samples, transform, contents)
        return classification.CachedImages(
            files, self.options.batch_size, loader_workers, config, self.cache, pinned
        )

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Names of the models to list, with their numbers of outputs."""
        key = storage.recipe_key((__name__,), ("timm",))
        names = storage.kept_text("timm-names", key, _pretrained_names).split(",")
        return dict(name.split("=") for name in names)

    @cached_property
    def _contents(self) -> Contents:
        """Hashes of images, each as it was when this task first asked."""
        return Contents()

    @cached_property
    def _source(self) -> Source:
        return source_of(self.require_root(), self.options)

    @property
    def _train(self) -> Training | None:
        """The training images; None: there are none."""
        return self._source.training

    @cached_property
    def _labelled(self) -> LabelledImages:
        """The images as their labels alone tell of them."""
        return self._require_train().labelled() if self.options.holdout else self._source.judged

    @cached_property
    def _judged(self) -> LabelledImages:
        """Images that could be judged on, before half of them is held out and a limit drawn."""
        return self._labelled.of_classes(self.options.num_classes)

    @cached_property
    def _chosen(self) -> list[Sample]:
        """Images to judge."""
        samples: Sequence[Sample] = self._judged.samples
        if self.options.holdout:
            samples = [samples[i] for i in _order(len(samples))[: len(samples) // 2]]
        chosen = [samples[i] for i in subset(len(samples), self.options.limit)]
        return in_stored_order(chosen)

    @cached_property
    def _pool(self) -> Sequence[Stored]:
        """Images that calibration draws from."""
        images = self._require_train().images
        if not self.options.holdout:
            return images
        return [images[i] for i in _order(len(images))[len(images) // 2 :]]

    def _drawn(self, n: int, seed: int) -> list[Stored]:
        pool = self._pool
        return [pool[i] for i in drawn(len(pool), n, seed, self._source.training_place)]

    def _require_train(self) -> Training:
        if self._train is None:
            raise TaskError(
                f"{self._source.training_place}: calibration needs training images there "
                f"({self._source.layout})"
            )
        return self._train

    def _untrained(
        self, model: str, held: storage.Checkpoint
    ) -> tuple[nn.Module, tuple[str, ...], str]:
        """The model with an output for each class; where no label tells how many, as the checkpoint has.

        With it what has to be said of that, and what to add where weights do not fit.

        Raises:
            TaskError: the checkpoint's head has another number of outputs; where more does not fit, that.
        """
        arguments = self._arguments(model)
        module = classification.create_untrained(model, arguments=arguments)
        own, classes = _outputs(module), self._judged.labels.classes
        head = classification.head_outputs(storage.weights_in(held, module), module)
        outputs = own if "num_classes" in arguments else classes or head or own
        if head is not None and head != outputs:
            whole = classification.create_untrained(model, head, {**arguments, "num_classes": head})
            # What else does not fit comes first: another head would not mend that.
            storage.load_weights(whole, held, classification.adapted_state)
            labels = self._labelled.labels
            way = classification.way_out(head, outputs, labels, self.options, model)
            raise TaskError(f"{held.path}: its head has {head} outputs, {way}")
        if outputs == own:
            return module, (), ""
        built = classification.create_untrained(model, outputs, arguments)
        instead = f"built with {outputs} outputs instead of {own}, as"
        if classes is None:
            return built, (f"{model} was {instead} the head of {held.path.name} has",), ""
        return built, (), f"; {instead} the labels say: {self._judged.notes[0]}"

    def _arguments(self, model: str) -> Mapping[str, Any]:
        return self.options.model_args.get(model, {})

    def _as_built(self, weights: str, model: str) -> str:
        """The identity of weights in a model that is built with arguments of the user's own.

        Raises:
            TaskError: it cannot be built with them.
        """
        arguments = self._arguments(model)
        if not arguments:
            return weights
        classification.check_arguments(model, arguments)
        return f"{weights} {json.dumps(arguments, sort_keys=True)}"

    def _require_outputs(self, module: nn.Module, model: str) -> None:
        """A wrong number of classes means other labels than the model was trained with."""
        self._judged.require_outputs(_outputs(module), model)

    def _outputs_problem(self, model: str) -> str | None:
        """Why a pretrained model, which is not fetched for it, has other classes than the labels."""
        plain = model in ARCHITECTURES or model in REFERENCES
        if plain and not self._arguments(model):
            return self._refused(IMAGENET_OUTPUTS, model)
        arguments = json.dumps(self._arguments(model), sort_keys=True)
        key = storage.recipe_key((__name__,), ("timm",))
        key = f"{key}-{sha256(f'{model} {arguments}'.encode()).hexdigest()[:16]}"
        outputs = storage.kept_text("outputs", key, lambda: str(_outputs(self.skeleton(model))))
        return self._refused(int(outputs), model)

    def _weights_source(self, model: str) -> str:
        """Where timm has the weights from; of those that papers report it need not be asked."""
        if model in REFERENCES:
            return f"hf-hub:timm/{model}"
        key = storage.recipe_key((__name__,), ("timm",))
        name = sha256(model.encode()).hexdigest()[:16]
        return storage.kept_text(
            "source", f"{key}-{name}", lambda: classification.weights_source(model) or "none"
        ).removeprefix("none")

    def _refused(self, outputs: int, model: str) -> str | None:
        """Why the labels are not those of a model with so many outputs, or None."""
        try:
            self._judged.require_outputs(outputs, model)
        except TaskError as error:
            return str(error)
        return None

    def _with_reference(self, model: str, module: nn.Module) -> LoadedModel:
        """The papers' figures hold for the full validation set only."""
        known = REFERENCES.get(classification.full_name(model))
        whole = len(self._judged.samples) == FULL_VALIDATION and not self._arguments(model)
        if known is None or self.options.holdout or not whole:
            return LoadedModel(model, module)
        return LoadedModel(model, module, known.top1, known.tolerance, "PTQ papers on timm weights")

    def require_model(self, model: str) -> None:
        """Refuse a name that timm does not have.

        Raises:
            TaskError: with names that are nearly so.
        """
        if self.knows_model(model):
            return
        near = ", ".join(classification.near_names(model))
        hint = f"; did you mean {near}?" if near else ""
        raise TaskError(f"timm has no model {model!r}{hint}")


def _outputs(module: nn.Module) -> int:
    return int(getattr(module, "num_classes", 0))


def _order(n: int) -> NDArray[np.int64]:
    """Training images in the order in which they are split: judged on are those of the first half."""
    return np.random.default_rng(HOLDOUT_SEED).permutation(n)


def _pretrained_names() -> str:
    """Names of timm's pretrained models with their outputs, at which timm takes seconds to look."""
    names = classification.pretrained_names(FAMILIES)
    return ",".join(f"{name}={classification.pretrained_outputs(name)}" for name in names)
