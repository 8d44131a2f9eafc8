"""Reconstruction of a model unit by unit: one engine, configured by methods."""
