"""Search of a method's settings on calibration images, after Quantune (FGCS 2022); see `bench tune`."""
