"""The models of the profiles that run on PyTorch: the pipeline as one model, or as a row of steps on a GPU."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any

from triton_repo import contract
from triton_repo.contract import PARAMETERS
from triton_repo.model_config import PYTHON, PYTHON_GPU, Ensemble, Model, SampleFile, TensorSpec
from triton_repo.pipeline_parts import Tensors, entrance, in_a_row, sample_picture
from triton_repo.serving_settings import ServingSettings


def fused_models(tensors: Tensors, settings: ServingSettings) -> list[Model | Ensemble]:
    """The pipeline as one model that forms its batches itself, and the text tower."""
    pipeline = _torch_model(
        settings,
        contract.IMAGE_PIPELINE,
        (tensors.image,),
        (*tensors.results, tensors.size),
        source="fused",
        max_batch_size=settings.gpu.batch,
        queue=entrance(settings),
        warmup={contract.IMAGE: SampleFile("picture.jpg", sample_picture())},
    )
    return [pipeline, _torch_text(tensors, settings)]


def ensemble_models(tensors: Tensors, settings: ServingSettings, version: int) -> list[Model | Ensemble]:
    """The pipeline in steps on a GPU, the towers. The steps warm up by themselves."""
    gpu = settings.gpu
    step = functools.partial(
        _torch_model,
        settings,
        gpu_inputs=True,
        max_batch_size=gpu.batch,
        queue_delay_us=settings.queue_delay_us,
        warmup=None,
    )
    steps = [
        step(
            contract.PREPROCESS,
            (tensors.image,),
            tensors.prepared,
            instances=gpu.preprocess_instances,
            queue=entrance(settings),
        ),
        step(contract.DETECTOR, (tensors.letterboxed,), (tensors.detections,)),
        step(
            contract.BOX_EMBEDDER,
            (tensors.centre, tensors.original, tensors.size, tensors.detections),
            tensors.results,
            instances=gpu.box_embedder_instances,
        ),
    ]
    return [
        *steps,
        step(contract.CLIP_IMAGE, (tensors.crops,), (tensors.vector,), max_batch_size=gpu.crops),
        _torch_text(tensors, settings),
        in_a_row(tensors, steps, gpu.batch, version),
    ]


def _torch_text(tensors: Tensors, settings: ServingSettings) -> Model:
    return _torch_model(
        settings,
        contract.CLIP_TEXT,
        (tensors.tokens,),
        (tensors.vector,),
        max_batch_size=settings.max_batch_size,
        queue=entrance(settings),
        cached=True,
    )


def _torch_model(
    settings: ServingSettings,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    source: str = "",
    gpu_inputs: bool = False,
    **rest: Any,
) -> Model:
    """A model of ours with PyTorch, on each of the GPUs; `source` where that is not `<name>_gpu`.

    gpu_inputs: it takes tensors where they lie; otherwise Triton brings them to the host.
    """
    runtime = PYTHON_GPU if settings.gpu.device == "cuda" else PYTHON
    parameters = {PARAMETERS: json.dumps({"gpu": asdict(settings.gpu), "max_pixels": settings.max_pixels})}
    if runtime.gpu and gpu_inputs:
        parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] = "no"
    return Model(
        name,
        inputs,
        outputs,
        runtime=runtime,
        gpus=settings.gpus if runtime.gpu else (),
        parameters=parameters,
        source=source or f"{name}_gpu",
        **rest,
    )
