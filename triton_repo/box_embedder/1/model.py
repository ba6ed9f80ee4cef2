"""The Triton model `box_embedder`."""

from triton_repo.serving import BoxEmbedderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
