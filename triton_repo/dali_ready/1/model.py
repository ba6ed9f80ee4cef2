"""The Triton model `dali_ready`."""

from triton_repo.serving import DaliReadyModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
