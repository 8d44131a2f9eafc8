"""Function-preserving transforms of a wrapped model: what goes in front of any calibration."""
