"""Reads Triton's replies into typed results."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo import contract
from triton_repo.contract import ImageInference

__all__ = ["ImageInference", "image_inference_of", "tensors_of"]

_DTYPES: dict[str, npt.DTypeLike] = {"FP32": np.float32, "INT32": np.int32}


def tensors_of(reply: Any) -> dict[str, npt.NDArray[Any]]:
    """Outputs of a ModelInferResponse by name, batch dimension kept; views of the reply's bytes (read-only)."""
    return {
        output.name: np.frombuffer(raw, _DTYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def image_inference_of(reply: Any) -> ImageInference:
    """The reply of `image_pipeline` to one picture."""
    tensors = tensors_of(reply)
    width, height = tensors[contract.IMAGE_SIZE][0]
    return ImageInference(
        width=int(width),
        height=int(height),
        embedding=tensors[contract.IMAGE_EMBEDDING][0],
        boxes=tensors[contract.BOXES][0],
        scores=tensors[contract.SCORES][0],
        class_ids=tensors[contract.CLASS_IDS][0],
        object_embeddings=tensors[contract.OBJECT_EMBEDDINGS][0],
    )
