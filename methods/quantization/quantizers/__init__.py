"""Quantizers, one form a class, and their arithmetic."""
