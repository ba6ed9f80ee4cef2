"""The Triton model `fused_pipeline` of the profile `fused`."""

from triton_repo.serving_gpu import FusedModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
