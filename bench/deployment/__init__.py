"""Quantized models out of the benchmark: what a saved file says, its card, ONNX files and how they run."""
