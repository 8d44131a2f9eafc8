"""Quantizers: one class a form, the registry of forms, and their arithmetic."""
