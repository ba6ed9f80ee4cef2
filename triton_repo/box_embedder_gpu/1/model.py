"""The Triton model `box_embedder` of the profile `ensemble`."""

from triton_repo.serving_ensemble import GpuBoxEmbedderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
