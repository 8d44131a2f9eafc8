"""Imports what a detection run needs, once for all runs of a sweep: mmdet alone takes seconds."""
