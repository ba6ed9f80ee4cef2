"""The Triton model `detector` of the profile `ensemble`."""

from triton_repo.serving_ensemble import GpuDetectorModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
