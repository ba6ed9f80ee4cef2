"""The Triton model `clip_image`."""

from triton_repo.serving_onnx import ClipImageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
