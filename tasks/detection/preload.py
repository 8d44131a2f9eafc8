"""Imports what a detection run needs, once for all runs of a sweep: mmdet alone takes seconds."""

import mmdet.datasets
import mmdet.evaluation
import mmdet.models
import mmdet.utils  # noqa: F401
