"""The door to mmdet and mmcv: the only module of the tasks that imports them, operators first.

mmdet cannot be imported without mmcv's compiled operators or what stands in for them (see `operators`), so
whoever needs a name of mmdet or mmcv takes it from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vit_ptq_bench.tasks.detection.operators import provide_deformable_attention, provide_operators

provide_operators()

import mmdet.datasets.transforms  # noqa: E402  registers mmdet's steps
import mmdet.models  # noqa: E402, F401  registers its detectors
from mmcv import imfrombytes  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # noqa: E402
from mmcv.transforms import Compose  # noqa: E402
from mmdet.datasets import CocoDataset  # noqa: E402
from mmdet.datasets.api_wrappers import COCO  # noqa: E402
from mmdet.evaluation import CocoMetric  # noqa: E402
from mmdet.models import DetDataPreprocessor  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402

__all__ = [
    "COCO",
    "MODELS",
    "CocoDataset",
    "CocoMetric",
    "Compose",
    "DetDataPreprocessor",
    "imfrombytes",
    "quiet_about_itself",
    "register_all_modules",
]

provide_deformable_attention(multi_scale_deformable_attn_pytorch)

ABOUT_ITSELF = (
    "torch.meshgrid: in an upcoming release",
    "DeprecationWarning: `num_anchors` is deprecated",
)
"""How warnings begin that mmdet causes by its own calls, of torch and of itself."""


@contextmanager
def quiet_about_itself() -> Iterator[None]:
    """Keep warnings of `ABOUT_ITSELF` from the user, who can do nothing about them; all others stand."""
    with warnings.catch_warnings():
        for beginning in ABOUT_ITSELF:
            warnings.filterwarnings("ignore", beginning, UserWarning)
        yield
