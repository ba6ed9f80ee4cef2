"""The servers that `sightlog tune` compares: each a Triton of its own, given its settings as the result will be."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from load_tests.gpu_load import Load, measure_load
from load_tests.running import free_port_offset
from load_tests.tune_sweep import Choice
from models.manifest import ModelManifest
from stack.local import LocalStack
from stack.settings import StackSettings
from triton_repo.contract import serving_version
from triton_repo.tuning import Tuning, machine_id, save_tuning

_BETWEEN = 200  # ports from one server to the other


class TritonServers:
    """Starts a server for a choice; at most two at once."""

    def __init__(self, settings: StackSettings, manifest: ModelManifest, pictures: Path, seconds: float) -> None:
        """`settings`: of the stack that is tuned for; `pictures`: folder of files; `seconds`: of one measurement."""
        self._settings, self._manifest = settings, manifest
        self._pictures, self._seconds = pictures, seconds
        first = free_port_offset()
        self._places = [first, first + _BETWEEN]

    def open(self, choice: Choice) -> TritonServer:
        """Raises StartError and PreflightError where Triton does not start with these settings."""
        folder = Path(tempfile.mkdtemp(prefix="sightlog-tune-"))
        alone = {"components": ("triton",), "workers": False, "models": self._manifest.folder, "data_dir": folder}
        settings = self._settings.model_copy(update={**alone, "port_offset": self._places[0]})
        save_tuning(folder, tuning_of(choice, self._manifest, settings))
        server = TritonServer(
            LocalStack(settings=settings), self._manifest, self._pictures, self._seconds, self._places
        )
        try:
            server.stack.up()
        except BaseException:
            server.close()
            raise
        return server


class TritonServer:
    """A Triton with the settings of a choice."""

    def __init__(
        self, stack: LocalStack, manifest: ModelManifest, pictures: Path, seconds: float, places: list[int]
    ) -> None:
        """Takes the first of `places`, and gives it back when it is closed."""
        self.stack = stack
        self._version = serving_version(manifest.digest)
        self._pictures, self._seconds = pictures, seconds
        self._places, self._place = places, places.pop(0)

    def measure(self, in_flight: int) -> Load:
        """Under load, after a warm-up."""
        address = self.stack.endpoints().triton_grpc
        return measure_load(address, self._version, self._pictures, (in_flight,), self._seconds)[0]

    def close(self) -> None:
        """Stop it and remove its files."""
        self.stack.down(wipe=True)
        shutil.rmtree(self.stack.data_dir, ignore_errors=True)
        self._places.append(self._place)


def tuning_of(choice: Choice, manifest: ModelManifest, settings: StackSettings) -> Tuning:
    """The choice as what the stack and its workers read; they share the pictures under way."""
    return Tuning(
        machine=machine_id(),
        digest=manifest.digest,
        profile=settings.triton_profile,
        serving=choice.serving,
        gpu=choice.gpu,
        vision_concurrency=-(-choice.in_flight // settings.vision_workers),
    )
