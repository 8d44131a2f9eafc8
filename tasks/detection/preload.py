"""Imports what a detection run needs, once for all runs of a sweep: mmdet alone takes seconds."""

import mmdet.datasets  # noqa: F401
import mmdet.evaluation  # noqa: F401
import mmdet.models  # noqa: F401
import mmdet.utils  # noqa: F401
