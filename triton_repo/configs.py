"""The served models: their tensors, how they are batched and queued, and what runs them in each profile."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

from models.manifest import ModelManifest
from triton_repo import contract
from triton_repo.contract import PARAMETERS
from triton_repo.model_config import (
    DALI,
    ONNXRUNTIME,
    PYTHON,
    TENSORRT,
    Ensemble,
    Model,
    Runtime,
    SampleFile,
    TensorSpec,
)
from triton_repo.pipeline_parts import Tensors, entrance, in_a_row, sample_picture
from triton_repo.serving_settings import ServingSettings
from triton_repo.torch_configs import ensemble_models, fused_models

#: `cpu`: the python backend throughout. `fused`: the same with PyTorch and DALI on GPUs, the pipeline being one model.
#: `ensemble`: the same in steps. The others are for NVIDIA's container, with a GPU.
Profile = Literal["cpu", "fused", "ensemble", "onnxruntime", "tensorrt"]
#: Profiles of which Triton's own backends run some models.
NATIVE: tuple[Profile, ...] = ("onnxruntime", "tensorrt")
#: Profiles of which PyTorch runs all models.
ON_TORCH: tuple[Profile, ...] = ("fused", "ensemble")
_NETWORKS: Mapping[Profile, Runtime] = {"cpu": PYTHON, "onnxruntime": ONNXRUNTIME, "tensorrt": TENSORRT}


def pipeline_models(
    manifest: ModelManifest, settings: ServingSettings, profile: Profile = "cpu"
) -> list[Model | Ensemble]:
    """Every model of the repository; one that is in several profiles has the same tensors in all of them."""
    tensors = Tensors(manifest)
    version = contract.serving_version(manifest.digest)
    if profile == "fused":
        return fused_models(tensors, settings, version)
    if profile == "ensemble":
        return ensemble_models(tensors, settings, version)
    network = _NETWORKS[profile]
    threads = {"model_threads": settings.model_threads}
    steps = [
        *_preparation(tensors, settings, dali=network.gpu),
        _model(
            settings,
            contract.DETECTOR,
            (tensors.letterboxed,),
            tensors.found,
            settings.detector_instances,
            threads,
            network,
        ),
        _model(
            settings,
            contract.BOX_EMBEDDER,
            tensors.embedded,
            tensors.results,
            settings.box_embedder_instances,
            {"max_crops": settings.max_crops},
            warmup=None,  # it would call the image tower, which may not be there yet
        ),
    ]
    return [
        *steps,
        _model(
            settings,
            contract.CLIP_IMAGE,
            (tensors.crops,),
            (tensors.vector,),
            settings.clip_image_instances,
            threads,
            network,
            max_batch_size=settings.max_crops,
        ),
        _model(
            settings,
            contract.CLIP_TEXT,
            (tensors.tokens,),
            (tensors.vector,),
            settings.clip_text_instances,
            threads,
            network,
            queue=entrance(settings),
            # People repeat their queries. Pictures hardly come twice, and to look for one hashes megabytes.
            cached=True,
        ),
        in_a_row(tensors, steps, settings.max_batch_size, version, dali=network.gpu),
    ]


def _preparation(tensors: Tensors, settings: ServingSettings, *, dali: bool) -> list[Model]:
    """From the bytes of a file to the views of a picture; before DALI a step that refuses what it cannot take."""
    sample = {contract.IMAGE: SampleFile("picture.jpg", sample_picture())}
    crash_on = {"crash_on": settings.crash_on} if settings.crash_on else {}
    at_entrance = functools.partial(
        _model,
        settings,
        instances=settings.preprocess_instances,
        parameters={"max_pixels": settings.max_pixels, **crash_on},
        queue=entrance(settings),
        warmup=sample,
    )
    if not dali:
        return [at_entrance(contract.PREPROCESS, (tensors.image,), tensors.prepared)]
    return [
        at_entrance(contract.DALI_READY, (tensors.image,), (tensors.dali_image,)),
        Model(
            contract.PREPROCESS,
            (tensors.image,),
            tensors.prepared,
            settings.max_batch_size,
            DALI,
            queue_delay_us=settings.queue_delay_us,
            parameters={"num_threads": str(settings.dali_threads)},
            warmup=sample,
        ),
    ]


def _model(
    settings: ServingSettings,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    instances: int,
    parameters: Mapping[str, Any],
    runtime: Runtime = PYTHON,
    **rest: Any,
) -> Model:
    """A model of ours; `instances` and `parameters` count where Python runs it, a GPU has one instance."""
    given: dict[str, Any] = {
        "max_batch_size": settings.max_batch_size,
        "queue_delay_us": settings.queue_delay_us,
        "runtime": runtime,
    }
    if runtime == PYTHON:
        given |= {"instances": instances, "parameters": {PARAMETERS: json.dumps(parameters)}}
    return Model(name, inputs, outputs, **(given | rest))
