"""The Triton model `image_pipeline` of the profile `fused`."""

from triton_repo.serving_gpu import FusedModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
