"""The models of the profiles that run on PyTorch: the pipeline as one model, or as a row of steps on a GPU."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any

from triton_repo import contract
from triton_repo.contract import PARAMETERS, StepTensors
from triton_repo.model_config import PYTHON, PYTHON_GPU, Ensemble, Model, SampleFile, TensorSpec
from triton_repo.pipeline_parts import Tensors, entrance, in_a_row, sample_picture
from triton_repo.serving_settings import ServingSettings


def fused_models(tensors: Tensors, settings: ServingSettings, version: int) -> list[Model | Ensemble]:
    """The pipeline as one model that forms its batches itself, behind processes that read the files' headers.

    In the one process that feeds the GPU, Python's lock is what is scarce: reading the headers there too held the
    pipeline at 87 % of its speed.
    """
    sample = SampleFile("picture.jpg", sample_picture())
    steps = [
        Model(
            contract.DALI_READY,
            (tensors.image,),
            (tensors.dali_image, tensors.dali_pixels),
            settings.gpu.batch,
            PYTHON,
            instances=settings.gpu.preprocess_instances,
            queue=entrance(settings),
            parameters={PARAMETERS: json.dumps({"max_pixels": settings.max_pixels})},
            warmup={contract.IMAGE: sample},
            source="dali_ready_sized",
        ),
        _torch_model(
            settings,
            contract.FUSED_PIPELINE,
            (tensors.dali_image, tensors.dali_pixels),
            (*tensors.results, tensors.size),
            source=contract.FUSED_PIPELINE,
            max_batch_size=settings.gpu.batch,
            warmup={StepTensors.DALI_IMAGE: sample},
        ),
    ]
    return [*steps, _torch_text(tensors, settings), in_a_row(tensors, steps, settings.gpu.batch, version)]


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
