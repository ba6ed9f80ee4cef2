"""Trial runs of a detector's graph with onnxruntime: what it answers, and whether any batch gives the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from models.detectors.errors import GraphError, first_line
from models.detectors.heads import Array, shown
from models.detectors.onnx_file import IMAGES, unknown_operators

Float32 = npt.NDArray[np.float32]

#: A batch that mixes pictures up errs by half of what the two pictures differ; rounding by a millionth.
_MIXED_UP = 0.2
_ROUNDING = 1e-5


def probe_pictures(side: int, value_range: tuple[float, float]) -> Float32:
    """Two pictures that differ much: float32 [2, 3, side, side] in the value range."""
    rng = np.random.default_rng(7)
    noise = rng.random((3, side, side))
    ramp = np.linspace(0, 1, side)
    shapes = np.stack([np.outer(ramp, ramp), np.outer(ramp[::-1], ramp), np.outer(ramp, ramp > 0.5)])
    low, high = value_range
    return np.asarray(low + (high - low) * np.stack([noise, shapes]), np.float32)


class Trial:
    """A graph that is loaded and can be run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises GraphError where onnxruntime cannot load the graph."""
        unknown = unknown_operators(model)
        if unknown:
            raise GraphError(f"onnxruntime has no operators {', '.join(unknown)}; export the detector without them")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a type of its own for each status, none of them public
            raise GraphError(
                f"onnxruntime cannot load the detector ({first_line(error)}); it is damaged or cut off, or needs what "
                "onnxruntime lacks: export it again"
            ) from None

    def run(self, pictures: Float32) -> dict[str, Array]:
        """Outputs by name. Raises GraphError where it fails or answers NaN or infinity."""
        try:
            values: list[Array] = self._session.run(None, {IMAGES: pictures})
        except Exception as error:  # as above
            count, side = len(pictures), pictures.shape[2]
            raise GraphError(
                f"the detector fails on {count} pictures of {side}x{side} ({first_line(error)}); "
                "export it again, or say which size it takes with --input-size"
            ) from None
        outputs = {output.name: value for output, value in zip(self._session.get_outputs(), values, strict=True)}
        for name, value in outputs.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise GraphError(
                    f"the output {shown(name)} holds NaN or infinity in a trial run; export the model again"
                )
        return outputs

    def run_apart(self, pictures: Float32, batch: int) -> dict[str, Array]:
        """Two pictures in runs of `batch`, the number that the exporter's graph is made for."""
        if batch > 1:
            repeated = np.resize(pictures, (batch, *pictures.shape[1:]))
            return {name: value[:2] for name, value in self.run(repeated).items()}
        first, second = self.run(pictures[:1]), self.run(pictures[1:])
        for name, value in first.items():
            if value.shape != second[name].shape:
                raise GraphError(
                    f"the size of the output {shown(name)} depends on the picture ({value.shape}, "
                    f"{second[name].shape}); export the detector with a fixed number of rows"
                )
        return {name: np.concatenate([np.atleast_1d(first[name]), np.atleast_1d(second[name])]) for name in first}


def takes_any_batch(model: onnx.ModelProto, pictures: Float32, apart: dict[str, Array]) -> bool:
    """Whether both pictures in one run give what they give alone (`apart`)."""
    try:
        together = Trial(model).run(pictures)
    except GraphError:
        return False
    return all(_same(together[name], alone) for name, alone in apart.items())


def _same(together: Array, alone: Array) -> bool:
    if together.shape != alone.shape:
        return False
    together, alone = together.astype(np.float64), alone.astype(np.float64)
    difference = np.abs(alone[0] - alone[1]).mean()
    allowed = max(_MIXED_UP * difference, _ROUNDING * np.abs(alone).mean())
    errors = np.abs(together - alone).reshape(2, -1).mean(1)
    return bool((errors <= allowed).all())
