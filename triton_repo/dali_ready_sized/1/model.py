"""The Triton model `dali_ready` of the profile `fused`."""

from triton_repo.serving import SizedDaliReadyModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
