"""The model store: CLIP pairs and detectors as parts, each in a folder of its own, and sets composed from two parts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from models.calibration import Calibration
from models.manifest import (
    ClipSpec,
    DetectorSpec,
    ModelFileError,
    ModelManifest,
    PreprocessingSpec,
    load_manifest,
    sha256_of,
    spec_from,
    write_manifest,
)
from sightlog.atomic_write import write_atomically
from sightlog.errors import SightlogError

Kind = Literal["clip", "detector"]
KINDS: tuple[Kind, ...] = ("clip", "detector")
BUILT_IN = "tiny"
PART_FILE = "part.json"
#: In the store: calibrations of sets, by digest.
CALIBRATIONS = "calibrations"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StoreError(SightlogError):
    """A part is not there, is there already, or cannot be read."""


@dataclass(frozen=True)
class Part:
    """A CLIP pair or a detector."""

    kind: Kind
    name: str
    spec: ClipSpec | DetectorSpec
    files: Mapping[str, str]  #: sha256 hex by file name
    source: Mapping[str, str]  #: where it came from, for people
    folder: Path

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the files that are served and that the digest covers."""
        if isinstance(self.spec, ClipSpec):
            return self.spec.image_onnx, self.spec.text_onnx
        return (self.spec.onnx,)

    def is_in(self, manifest: ModelManifest) -> bool:
        """Whether the set was composed with this part."""
        same_weights = all(manifest.files.get(file) == self.files[file] for file in self.weights)
        return same_weights and self.spec in (manifest.clip, manifest.detector)

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum((self.folder / file).stat().st_size for file in self.files)


class ModelStore:
    """Parts in `<folder>/<kind>/<name>/`; the built-in tiny ones are always there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parts(self, kind: Kind) -> list[Part]:
        """All parts of a kind, the built-in one first. Raises StoreError when one cannot be read."""
        folders = sorted(path.parent for path in (self.folder / kind).glob(f"[!.]*/{PART_FILE}"))
        return [_built_in(kind), *(_read(kind, folder) for folder in folders)]

    def part(self, kind: Kind, name: str) -> Part:
        """The part of that name. Raises StoreError, which names those that are there."""
        if name == BUILT_IN:
            return _built_in(kind)
        folder = self.folder / kind / name
        if not _NAME.fullmatch(name) or not (folder / PART_FILE).is_file():
            known = ", ".join(part.name for part in self.parts(kind))
            raise StoreError(
                f"no {kind} is called {name!r} in {self.folder} (there are: {known}); "
                "`sightlog models export-clip` and `import-detector` add some"
            )
        return _read(kind, folder)

    @contextmanager
    def adding(self, kind: Kind, name: str, *, replace: bool = False) -> Iterator[Path]:
        """An empty folder for the files of a new part, which `write_part` completes; it becomes visible as a whole.

        Raises StoreError for a name that is not allowed, exists (unless `replace`), or is being added elsewhere.
        """
        if not _NAME.fullmatch(name) or name == BUILT_IN:
            raise StoreError(f"a part cannot be called {name!r}: use letters, digits, '.', '_', '-', and not 'tiny'")
        target = self.folder / kind / name
        if target.exists() and not replace:
            raise StoreError(f"{kind} {name!r} exists already in {self.folder}; --replace overwrites it, --name adds")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh, old = target.with_name(f".{name}.adding"), target.with_name(f".{name}.replaced")
        with (target.parent / f".{name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{kind} {name!r} is being added by another process; wait for it") from None
            for leftover in (fresh, old):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            try:
                yield fresh
                if not (fresh / PART_FILE).is_file():
                    raise RuntimeError("write_part was not called")
                if target.exists():
                    target.rename(old)
                fresh.rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)

    def calibration(self, digest: str) -> Calibration | None:
        """What was measured for the set of that digest; None where nothing was. Raises StoreError."""
        built_in = load_manifest()
        path = self.folder / CALIBRATIONS / f"{digest}.json"
        if not path.is_file():
            return built_in.calibration if digest == built_in.digest else None
        try:
            return Calibration.from_document(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete it and run `sightlog models calibrate`"
            ) from None

    def keep_calibration(self, digest: str, calibration: Calibration) -> None:
        """For every set of that digest that is composed from now on, in place of an earlier one. Raises StoreError."""
        path = self.folder / CALIBRATIONS / f"{digest}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(calibration.to_document(), indent=2) + "\n")
        except OSError as error:
            raise StoreError(
                f"cannot keep the calibration as {path} ({error.strerror}); make {self.folder} writable, "
                "or name another store with SIGHTLOG_MODELS_DIR"
            ) from None

    @staticmethod
    def write_part(folder: Path, spec: ClipSpec | DetectorSpec, source: Mapping[str, str]) -> None:
        """Hash the ONNX files in `folder` and describe the part; the last step of adding one."""
        files = {path.name: sha256_of(path) for path in sorted(folder.glob("*.onnx"))}
        document = {"spec": asdict(spec), "files": files, "source": dict(source)}
        (folder / PART_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def compose(clip: Part, detector: Part, preprocessing: PreprocessingSpec, target: Path) -> ModelManifest:
    """Lay the files of both parts into the empty folder `target` and write their manifest.

    Raises ModelFileError when a weight file is not the one that was stored.
    """
    assert isinstance(clip.spec, ClipSpec)
    assert isinstance(detector.spec, DetectorSpec)
    for part in (clip, detector):
        for file in part.files:
            _lay(part, file, target / file)
    name = clip.name if clip.name == detector.name else f"{clip.name}+{detector.name}"
    manifest = write_manifest(target, name, clip.spec, detector.spec, preprocessing)
    for part in (clip, detector):
        for file, digest in part.files.items():
            # A form of the detector for TensorRT is no part of the manifest.
            if (manifest.files.get(file) or sha256_of(target / file)) != digest:
                raise ModelFileError(f"{part.folder / file} is not the file that was stored; add {part.name!r} again")
    return manifest


def _lay(part: Part, file: str, target: Path) -> None:
    """A hard link costs nothing, and is safe: the store never writes into a file, it replaces whole parts."""
    source = part.folder / file
    if not source.is_file():
        raise ModelFileError(f"{source} is missing; add {part.name!r} again")
    if part.name != BUILT_IN:  # those belong to the installation
        with suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _built_in(kind: Kind) -> Part:
    manifest = load_manifest()
    spec = manifest.clip if kind == "clip" else manifest.detector
    names = [manifest.clip.image_onnx, manifest.clip.text_onnx] if kind == "clip" else [manifest.detector.onnx]
    files = {name: manifest.files[name] for name in names}
    return Part(kind, BUILT_IN, spec, files, {"origin": "built in"}, manifest.folder)


def _read(kind: Kind, folder: Path) -> Part:
    try:
        document = json.loads((folder / PART_FILE).read_text(encoding="utf-8"))
        values = document["spec"]
        spec = spec_from(ClipSpec, values) if kind == "clip" else spec_from(DetectorSpec, values)
        return Part(kind, folder.name, spec, dict(document["files"]), dict(document["source"]), folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / PART_FILE} cannot be read ({error}); add {folder.name!r} again") from None
