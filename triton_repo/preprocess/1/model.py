"""The Triton model `preprocess`."""

from triton_repo.serving import PreprocessModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
