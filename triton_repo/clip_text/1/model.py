"""The Triton model `clip_text`."""

from triton_repo.serving_onnx import ClipTextModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
