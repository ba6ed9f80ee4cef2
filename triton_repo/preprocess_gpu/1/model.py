"""The Triton model `preprocess` of the profile `ensemble`."""

from triton_repo.serving_ensemble import GpuPreprocessModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
