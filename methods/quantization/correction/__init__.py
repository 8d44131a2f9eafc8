"""Corrections of blocks by a regression of their quantization error: as a layer of its own, or folded."""
