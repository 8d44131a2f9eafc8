"""Diagnostics: how hard each tensor of a model is to quantize, and how far its blocks carry errors."""
