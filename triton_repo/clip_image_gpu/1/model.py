"""The Triton model `clip_image` of the profile `ensemble`."""

from triton_repo.serving_ensemble import GpuImageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
