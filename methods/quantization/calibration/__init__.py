"""Calibration: images, passes over them, range rules, recordings."""
