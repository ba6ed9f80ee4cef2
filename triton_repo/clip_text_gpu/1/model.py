"""The Triton model `clip_text` of the GPU profiles."""

from triton_repo.serving_gpu import GpuTextModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
