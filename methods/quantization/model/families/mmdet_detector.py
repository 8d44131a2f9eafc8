"""Detectors of mmdet behind their backbones: neck and heads, and what is looked at of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.families.base import Family
from vit_ptq_bench.methods.quantization.model.families.streams import StreamNotes
from vit_ptq_bench.methods.quantization.model.structure import Layer

PARTS = {
    "neck": "neck",
    "rpn_head": "rpn_head",
    "roi_head.bbox_head": "bbox_head",
    "roi_head.mask_head": "mask_head",
    "bbox_head": "bbox_head",
}
"""Modules behind the backbone and the role of their layers."""

DENSE = ("rpn_head", "bbox_head")
"""Those of `PARTS` that look at all levels of the pyramid with one set of layers."""

# Places in mmdet, for importing it takes seconds, and a classifier does without.
DETECTORS = {
    "mmdet.models.detectors.two_stage.TwoStageDetector",
    "mmdet.models.detectors.single_stage.SingleStageDetector",
    "mmdet.models.detectors.base_detr.DetectionTransformer",
}
"""Kinds of detectors that give boxes of images alone."""

OTHERS = {
    "mmdet.models.detectors.panoptic_two_stage_segmentor.TwoStagePanopticSegmentor",
    "mmdet.models.detectors.grounding_dino.GroundingDINO",
    "mmdet.models.detectors.glip.GLIP",
    "mmdet.models.detectors.rpn.RPN",
}
"""Detectors of those kinds that segment everything, ask for texts, or give no classes."""

DENSE_HEADS = {
    "mmdet.models.dense_heads.retina_head.RetinaHead",
    "mmdet.models.dense_heads.fcos_head.FCOSHead",
    "mmdet.models.dense_heads.atss_head.ATSSHead",
    "mmdet.models.dense_heads.gfl_head.GFLHead",
}
"""One-stage heads of linear layers and convolutions alone, called once per level of the pyramid."""

RPN_HEADS = {"mmdet.models.dense_heads.rpn_head.RPNHead"}

ROI_HEADS = {
    "mmdet.models.roi_heads.standard_roi_head.StandardRoIHead",
    "mmdet.models.roi_heads.cascade_roi_head.CascadeRoIHead",
}

FPN = "mmdet.models.necks.fpn.FPN"

CHANNEL_MAPPER = "mmdet.models.necks.channel_mapper.ChannelMapper"

MASK_ROIS = 100
"""Regions whose masks are looked at, as mmdet's own forward does; spread over the batch."""


class DetectorFamily(Family):
    """Base of the families of mmdet's detectors, one for each kind of backbone.

    The bit table's scope says what is quantized: the backbone, or also every linear layer and convolution
    behind it. Transposed convolutions (of a mask head) stay in floating point, as in RepQ-ViT's code.
    """

    @abstractmethod
    def replace_backbone(self) -> None:
        """Replace the layers of the backbone and note its segments."""

    @abstractmethod
    def note_streams(self) -> None:
        """Note what writes and reads the residual streams, when everything is replaced."""

    def replace_layers(self) -> None:
        if self.table.scope == "full":
            self._require_known_heads()
        self.replace_backbone()
        if self.table.scope == "full":
            self._replace_heads()
        self.note_streams()
        self.structure.tail = self._neck
        self.structure.observe = self._observe
        self.structure.features = self._features

    def quantized_part(self) -> Iterable[tuple[str, nn.Module]]:
        """Return the backbone, or all but the transposed convolutions (no `nn.Conv2d`)."""
        part = self.model if self.table.scope == "full" else self.model.backbone
        modules: Iterable[tuple[str, nn.Module]] = part.named_modules()
        return modules

    def _require_known_heads(self) -> None:
        """Refuse heads in which something else than linear layers and convolutions multiplies.

        Raises:
            MethodError: the part is named; scope ``backbone`` takes the detector all the same.
        """
        model = self.model
        if hasattr(model, "roi_head"):
            known = {"rpn_head": RPN_HEADS, "roi_head": ROI_HEADS}
        elif hasattr(model, "encoder"):
            raise self._no_roles("the layers of its encoder and decoder")
        else:
            known = {"bbox_head": DENSE_HEADS}
        for part, places in known.items():
            if place_of(getattr(model, part)) not in places:
                raise self._no_roles(f"{part}, a {type(getattr(model, part)).__name__}")
        for name, module in model.named_modules():
            if type(module).__module__.startswith("mmcv.ops.") and "roi_extractor" not in name:
                raise self._no_roles(f"{name}, a {type(module).__name__}")

    def _no_roles(self, what: str) -> Exception:
        return self.refusal(
            f"in scope full no role is known for {what}; scope backbone quantizes the backbone alone"
        )

    def _replace_heads(self) -> None:
        for part, role in PARTS.items():
            if not hasattr(self.model, part.split(".")[0]):
                continue
            module = _submodule(self.model, part)
            if module is None:
                continue
            _keep_outputs(module)
            for name, parent in list(module.named_modules(prefix=part)):
                for child, layer in list(parent.named_children()):
                    if isinstance(layer, nn.Linear | nn.Conv2d):
                        operation = self.replace(parent, child, f"{name}.{child}", role)
                        operation.several_maps = part in DENSE

    def note_neck(self, stream: StreamNotes, level: int, norm: nn.Module | None, name: str) -> None:
        """Note what reads a feature map of the backbone: lateral convolutions of 1 x 1.

        Args:
            stream: the one that the map is of.
            level: of the map, counted among those that the backbone gives.
            norm: the map's, called ``name``.
        """
        neck = getattr(self.model, "neck", None)
        read = _lateral_layers(neck, level)
        if read is None:
            place = "no neck" if neck is None else place_of(neck)
            stream.fixed(f"it is not known what in the neck ({place}) reads it")
            return
        stream.read_by(norm, *read, name=name)

    def _neck(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        neck = getattr(self.model, "neck", None)
        return tuple(maps if neck is None else neck(list(maps)))

    def _features(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.extract_feat(images))

    def _observe(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the neck and, in scope ``full``, what the heads make of them.

        Proposals are taken as they are: nothing is differentiated through their selection.
        """
        features = self._features(images)
        if self.table.scope == "backbone":
            return features
        if not hasattr(self.model, "roi_head"):
            return (*features, *_tensors(self.model.bbox_head(features)))
        return (*features, *_two_stage_outputs(self.model, features, images))


def place_of(module: object) -> str:
    """Return module and name of an object's class."""
    return f"{type(module).__module__}.{type(module).__name__}"


def is_detector(model: nn.Module) -> bool:
    """Whether a model is a detector of mmdet that finds boxes and classes in images alone."""
    places = {f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__}
    return bool(places & DETECTORS) and not places & OTHERS


def _keep_outputs(part: nn.Module) -> None:
    """Let ReLU write new tensors: a recording of a layer's output would hold what ReLU makes of it."""
    for module in part.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False


def _lateral_layers(neck: Any, level: int) -> list[Layer] | None:
    """Return the convolutions of 1 x 1 that read a level of the backbone; None: others read it, too."""
    place = place_of(neck)
    if place == FPN:
        extra = neck.add_extra_convs == "on_input" and neck.num_outs > len(neck.lateral_convs)
        if extra and level == neck.backbone_end_level - 1:
            return None
        laterals = neck.lateral_convs
        return [lateral.conv for i, lateral in enumerate(laterals) if i == level - neck.start_level]
    if place == CHANNEL_MAPPER:
        extra = neck.extra_convs is not None and level == len(neck.convs) - 1
        layer: Layer = neck.convs[level].conv
        return None if extra or layer.weight.shape[2:] != (1, 1) else [layer]
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from _tensors(part)


def _two_stage_outputs(
    model: Any, features: tuple[Tensor, ...], images: Tensor
) -> Iterator[Tensor]:
    """Scores and boxes of the RPN, then what the RoI heads say of its proposals."""
    from mmdet.structures.bbox import bbox2roi

    shape = tuple(images.shape[-2:])
    facts = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
    scores, boxes = model.rpn_head(features)
    with torch.no_grad():
        proposals = model.rpn_head.predict_by_feat(
            [score.detach() for score in scores],
            [box.detach() for box in boxes],
            batch_img_metas=[facts] * len(images),
        )
    rois = bbox2roi([proposal.bboxes for proposal in proposals])
    yield from (*scores, *boxes)
    yield from _roi_outputs(model.roi_head, features, rois, facts)


def _roi_outputs(
    roi_head: Any, features: tuple[Tensor, ...], rois: Tensor, facts: dict[str, Any]
) -> list[Tensor]:
    """Scores, boxes and masks of every stage of the RoI heads, each stage on the boxes of the one before.

    Args:
        roi_head: mmdet's, standard or cascade.
        features: of the neck.
        rois: [n, 5], (image, x1, y1, x2, y2).
        facts: mmdet's meta information, one for all images: they have one size.
    """
    cascade = isinstance(roi_head.bbox_head, nn.ModuleList)
    stages = [(stage,) for stage in range(roi_head.num_stages)] if cascade else [()]
    found = []
    for number, stage in enumerate(stages, start=1):
        result = roi_head._bbox_forward(*stage, features, rois)
        found += [result["cls_score"], result["bbox_pred"]]
        if number < len(stages):
            labels = result["cls_score"][:, :-1].argmax(dim=1)
            head = roi_head.bbox_head[number - 1]
            moved = head.regress_by_class(rois[:, 1:], labels, result["bbox_pred"].detach(), facts)
            rois = torch.cat([rois[:, :1], moved], dim=1)
    if roi_head.with_mask:
        some = rois[:: max(1, len(rois) // MASK_ROIS)][:MASK_ROIS]
        found += [roi_head._mask_forward(*stage, features, some)["mask_preds"] for stage in stages]
    return found


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    """Return a part of a model by its dotted name, or None: a detector may have no mask head."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None
