"""Detectors: recognise the head of an ONNX file, append non-maximum suppression, store it with its description."""
