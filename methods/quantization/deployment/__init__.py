"""Quantized models as others run them: integer types in ONNX files, integer products, and their costs."""
