"""COCO's figures, which are the metrics of detection tasks."""

from __future__ import annotations

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's twelve figures, in their order."""

KINDS = {"box": "bbox", "mask": "segm"}
"""What is judged, and pycocotools' name of it."""

METRICS = ("box_ap", "mask_ap", *(f"{kind}_{f}" for kind in KINDS for f in FIGURES[1:]))

TITLES = {"mask_ap": "mask AP", "box_ap50": "box AP50", "box_ap75": "box AP75"}
"""The metrics that tables show beside box AP."""
