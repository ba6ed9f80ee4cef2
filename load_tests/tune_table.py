"""What `sightlog tune` tries, by profile: settings in the order of how much they usually matter, and their values."""

from __future__ import annotations

import os
from collections.abc import Sequence

from load_tests.tune_sweep import Change, Choice, Knob
from triton_repo.serving_settings import ServingSettings

_DEFAULT = ServingSettings()


def start_of(profile: str) -> Choice:
    """The defaults, with enough pictures under way to fill their batches."""
    return Choice(in_flight=16 if profile == "cpu" else 128)


def knobs(profile: str, *, quick: bool = False, cores: int | None = None) -> Sequence[Knob]:
    """Every setting with its candidates; `quick`: the two or three that matter most."""
    cores = cores or len(os.sched_getaffinity(0))
    table = _cpu(cores) if profile == "cpu" else _gpu(cores)
    return table[: 3 if profile == "cpu" else 2] if quick else table


def _cpu(cores: int) -> list[Knob]:
    """Processes and threads up to the number of cores: more would only take turns."""
    counts = [count for count in (1, 2, 4, 8, 16) if count <= cores]
    return [
        _serving("detector_instances", counts),
        _serving("clip_image_instances", counts),
        [Change("load", {"in_flight": n}) for n in (8, 32, 64)],
        _serving("preprocess_instances", counts),
        _serving("model_threads", counts[:3]),
        _serving("max_batch_size", (4, 8, 16)),
        _serving("box_embedder_instances", counts[:3]),
        _serving("queue_delay_us", (0, 500, 2000)),
    ]


def _serving(name: str, values: Sequence[int]) -> Knob:
    """Without the default, which is what a sweep begins with."""
    return [Change("serving", {name: value}) for value in values if value != getattr(_DEFAULT, name)]


def _gpu(cores: int) -> list[Knob]:
    """Batches bring their own sizes of graphs with them: those that hold one batch with ten crops a picture."""
    return [
        [Change("load", {"in_flight": n}) for n in (64, 192, 256)],
        [
            Change("gpu", {"batch": 16, "detector_sizes": [2, 8, 16], "tower_sizes": [11, 44, 88, 176]}),
            Change("gpu", {"batch": 64, "detector_sizes": [2, 16, 64], "tower_sizes": [11, 88, 176, 352, 704]}),
        ],
        [
            Change("gpu", {"tower_sizes": [11, 88, 352]}),
            Change("gpu", {"tower_sizes": [11, 44, 88, 176, 264, 352, 528]}),
        ],
        [Change("gpu", {"slots": n}) for n in (6,)],
        [Change("gpu", {"decode_ahead": 3, "slots": 6})],
        [Change("gpu", {"dali_threads": n}) for n in (4, 16) if n <= cores],
    ]
