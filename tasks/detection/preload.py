"""Imports what every detection run needs, once for all runs of a sweep: mmdet alone takes seconds."""

import vit_ptq_bench.tasks.detection.datasets
import vit_ptq_bench.tasks.detection.evaluation
import vit_ptq_bench.tasks.detection.models  # noqa: F401
