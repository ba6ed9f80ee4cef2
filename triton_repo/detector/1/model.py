"""The Triton model `detector`."""

from triton_repo.serving_onnx import DetectorModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
