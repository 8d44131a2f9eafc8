"""COCO detection and instance segmentation with mmdet.

mmdet is imported when a detector is first built, not before: a classification run does without it.
"""
