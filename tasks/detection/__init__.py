"""Parts of detection tasks: annotations in COCO's form, mmdet's data sets and detectors, average precision.

Names are imported when they are asked for: task cards do without torch, a classification run without mmdet.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
