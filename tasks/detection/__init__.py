"""COCO detection and instance segmentation with mmdet.

mmdet is imported when a detector is first built, not before: a classification run does without it. What mmdet
needs of mmcv's compiled operators is provided here, so that no module can import it too early.
"""

from vit_ptq_bench.tasks.detection.operators import provide_operators

provide_operators()
