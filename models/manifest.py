"""The model manifest: what a set of ONNX files is, how to feed it, and the digest that names its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from models.calibration import Calibration
from sightlog.atomic_write import write_atomically
from sightlog.errors import SightlogError

TINY_FOLDER = Path(__file__).parent / "tiny"
MANIFEST_FILE = "manifest.json"

_Spec = TypeVar("_Spec", "ClipSpec", "DetectorSpec", "PreprocessingSpec")


class ManifestError(SightlogError):
    """The manifest is missing, unreadable, or does not describe a usable set of models."""


class ModelFileError(SightlogError):
    """A model file is missing or is not the one that the manifest names."""


@dataclass(frozen=True)
class ClipSpec:
    """The two CLIP towers and what they expect."""

    name: str
    image_onnx: str
    text_onnx: str
    dim: int
    image_size: int  #: pixels, square
    mean: tuple[float, float, float]  #: RGB, of values in 0..1
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"]
    tokenizer: Literal["clip-bpe"]
    context_length: int
    pad_id: int


@dataclass(frozen=True)
class DetectorSpec:
    """The detector with its End2End outputs and what it expects."""

    name: str
    onnx: str
    input_size: int  #: pixels, square
    colour_order: Literal["rgb", "bgr"]
    value_range: tuple[float, float]
    letterbox: Literal["center", "top-left"]
    pad_value: int  #: grey level of the letterbox bars, 0..255
    classes: tuple[str, ...]  #: by class id
    max_detections: int
    score_threshold: float  #: applied inside the graph


@dataclass(frozen=True)
class PreprocessingSpec:
    """How an image becomes the crops that are embedded."""

    original_cap: int  #: longest side in pixels that crops are taken from; 0 = no cap
    crop_margin: float  #: context on each side, as a part of the box's longer side
    crop: Literal["square"]


@dataclass(frozen=True)
class ModelManifest:
    """One usable set of models. `digest` changes with every weight and every field that changes a vector.

    A calibration changes none, so it may be added, measured again or left out.
    """

    name: str
    digest: str
    clip: ClipSpec
    detector: DetectorSpec
    preprocessing: PreprocessingSpec
    files: Mapping[str, str]  #: sha256 hex by file name
    folder: Path
    calibration: Calibration | None = None

    def path(self, file: str) -> Path:
        """Where a file of this set lies. Raises ModelFileError for a name that is not in the manifest."""
        if file not in self.files:
            raise ModelFileError(
                f"{file} is not a file of the models '{self.name}'; these are: {', '.join(sorted(self.files))}"
            )
        return self.folder / file

    def verify(self) -> None:
        """Compares every file with its sha256. Raises ModelFileError on the first that is missing or differs."""
        for file, expected in self.files.items():
            path = self.path(file)
            if not path.is_file():
                raise ModelFileError(f"{path} is missing; restore it, or export the models '{self.name}' again")
            found = sha256_of(path)
            if found != expected:
                raise ModelFileError(
                    f"{path} has sha256 {found}, but its manifest says {expected}; "
                    "restore the file, or export again so that the manifest follows the weights"
                )


def load_manifest(folder: Path | None = None) -> ModelManifest:
    """Reads `manifest.json` of a folder; None = the tiny models that are part of this package.

    Raises ManifestError where the file is missing or wrong. It does not read the weights: `verify()` does.
    """
    folder = TINY_FOLDER if folder is None else Path(folder)
    path = folder / MANIFEST_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(
            f"cannot read {path} ({error.strerror}); name a folder that holds {MANIFEST_FILE}"
        ) from error
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON ({error}); restore it, or export the models again") from error
    try:
        manifest = _from_document(document, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path} does not describe models: {error}; export the models again") from error
    try:
        manifest = replace(manifest, calibration=_calibration(document, manifest.clip.dim))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"the calibration in {path} cannot be read ({error}); take it out and run `sightlog models calibrate`"
        ) from error
    expected = digest_of(manifest.clip, manifest.detector, manifest.preprocessing, manifest.files)
    if manifest.digest != expected:
        raise ManifestError(
            f"{path} says digest {manifest.digest}, but its fields give {expected}; "
            "do not edit it by hand: export the models again"
        )
    return manifest


def write_manifest(
    folder: Path, name: str, clip: ClipSpec, detector: DetectorSpec, preprocessing: PreprocessingSpec
) -> ModelManifest:
    """Hashes the ONNX files that lie in `folder`, writes `manifest.json` beside them, returns what it wrote.

    A calibration that lies there for the same digest is kept.
    """
    files = {file: sha256_of(folder / file) for file in (clip.image_onnx, clip.text_onnx, detector.onnx)}
    document = {
        "name": name,
        "digest": digest_of(clip, detector, preprocessing, files),
        "clip": asdict(clip),
        "detector": asdict(detector),
        "preprocessing": asdict(preprocessing),
        "files": files,
    }
    with suppress(ManifestError):  # mostly there is none yet
        earlier = load_manifest(folder)
        if earlier.calibration is not None and earlier.digest == document["digest"]:
            document["calibration"] = earlier.calibration.to_document()
    (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return load_manifest(folder)


def write_calibration(folder: Path, calibration: Calibration) -> ModelManifest:
    """Put a calibration into the manifest of `folder`, in place of an earlier one; the digest stays.

    Raises ManifestError where there is no manifest, or where it cannot be written.
    """
    load_manifest(folder)
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text(encoding="utf-8")) | {"calibration": calibration.to_document()}
    try:
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ManifestError(
            f"cannot write {path} ({error.strerror}); make {folder} writable, or name a copy with SIGHTLOG_MODELS"
        ) from error
    return load_manifest(folder)


def digest_of(
    clip: ClipSpec, detector: DetectorSpec, preprocessing: PreprocessingSpec, files: Mapping[str, str]
) -> str:
    """sha256 hex over the weights' digests and every field but the names that people gave."""
    identity = {
        "clip": _without_names(asdict(clip)),
        "detector": _without_names(asdict(detector)),
        "preprocessing": asdict(preprocessing),
        "weights": [files[clip.image_onnx], files[clip.text_onnx], files[detector.onnx]],
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _without_names(spec: dict[str, Any]) -> dict[str, Any]:
    """A renamed file or model gives the same vectors, so names stay out of the digest."""
    return {key: value for key, value in spec.items() if key not in {"name", "onnx", "image_onnx", "text_onnx"}}


def _from_document(document: dict[str, Any], folder: Path) -> ModelManifest:
    clip = spec_from(ClipSpec, document["clip"])
    detector = spec_from(DetectorSpec, document["detector"])
    files = dict(document["files"])
    for file in (clip.image_onnx, clip.text_onnx, detector.onnx):
        if file not in files:
            raise ValueError(f"no sha256 for {file}")
    return ModelManifest(
        name=str(document["name"]),
        digest=str(document["digest"]),
        clip=clip,
        detector=detector,
        preprocessing=spec_from(PreprocessingSpec, document["preprocessing"]),
        files=files,
        folder=folder,
    )


def _calibration(document: dict[str, Any], dim: int) -> Calibration | None:
    if document.get("calibration") is None:
        return None
    calibration = Calibration.from_document(document["calibration"])
    for target, centre in calibration.centres.items():
        if len(centre) != dim:
            raise ValueError(f"the centre of {target} has {len(centre)} dimensions, the model {dim}")
    return calibration


def spec_from(kind: type[_Spec], values: Mapping[str, Any]) -> _Spec:
    """The dataclass from JSON values. Raises ValueError when fields are missing or unknown."""
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
        raise ValueError(f"{kind.__name__} lacks {missing} and has unknown {unknown}")
    fitted: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**fitted)
