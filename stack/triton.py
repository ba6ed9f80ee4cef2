"""Triton Inference Server: the one that `nvidia-pytriton` bundles, with its python backend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import stack as stack_package
from models.manifest import ModelManifest, load_manifest
from models.settings import chosen_folder
from stack import ports
from stack.artifacts import Artifact
from stack.component import Launch, Progress, Usage
from stack.errors import PreflightError
from stack.mps import PROGRAM, MultiProcessService
from stack.processes import marked_environment, remove_shared_memory, shared_memory_prefix
from stack.settings import HOST, StackSettings
from stack.triton_stubs import STUB, Stubs

if TYPE_CHECKING:
    from triton_repo.serving_settings import ServingSettings

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_ENVIRONMENT = {
    # glibc gives large tensors back to the kernel after each request and faults them in again: 43 against 65
    # images a second.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    # Instances are the parallelism; each with a thread pool of its own would only fight for the cores.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def bundle() -> tuple[Path, Path]:
    """Folder of the bundled server, and of its shared libraries. Raises PreflightError."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise PreflightError("the package nvidia-pytriton is missing: `pip install 'sightlog[stack]'`")
    package = Path(spec.origin).parent
    return package / "tritonserver", package.parent / "nvidia_pytriton.libs"


def libpython_folder() -> str | None:
    """Where the shared libpython of this interpreter lies; None if the system finds it by itself."""
    name = f"libpython{PYTHON}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")):
        if folder and (Path(folder) / name).exists():
            return str(folder)
    system = [Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu")]
    if any((folder / name).exists() for folder in system):
        return None
    raise PreflightError(
        f"{name} is missing, which Triton's Python models need: install it (Debian, Ubuntu: "
        f"apt install libpython{PYTHON}), or use a Python that was built with a shared library"
    )


class Triton:
    """The server as a supervised process."""

    name = "triton"

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "triton"
        self._http = settings.port(ports.TRITON_HTTP)
        version = importlib.metadata.version("nvidia-pytriton")
        self._backends = settings.cache_dir / f"triton-{version}-python{PYTHON}" / "backends"
        self.ports = {
            "http": self._http,
            "grpc": settings.port(ports.TRITON_GRPC),
            "metrics": settings.port(ports.TRITON_METRICS),
        }
        self._on_gpu = settings.triton_profile != "cpu"
        self.ready_timeout_s = settings.triton_gpu_ready_timeout_s if self._on_gpu else settings.triton_ready_timeout_s
        self._stubs = Stubs(
            self._http,
            stopped_limit_s=settings.triton_stopped_s,
            # A model compiles on a GPU, whoever starts it.
            load_limit_s=self.ready_timeout_s if self._on_gpu else settings.triton_load_timeout_s,
        )
        #: A server, and when it answered last.
        self._heard = (0, 0.0)

    @property
    def usage(self) -> Usage:
        """With the weights once more in the repository, and in memory in full precision."""
        manifest = self._manifest()
        paths = [manifest.path(file) for file in manifest.files] if manifest else []
        weights_mb = sum(path.stat().st_size for path in paths if path.is_file()) >> 20
        return Usage(memory_mb=1000 + 3 * weights_mb, data_mb=50 + weights_mb, shm_mb=256)

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """Nothing from Maven."""
        return {}

    def prepare(self, progress: Progress) -> None:
        """Put the stub of this Python beside the backend; generate the model repository."""
        server, _ = bundle()
        libpython_folder()
        stub = server / "python_backend_stubs" / PYTHON / STUB
        if not stub.exists():
            raise PreflightError(f"the bundled Triton has no stub for Python {PYTHON}: use Python 3.10 to 3.12")
        backend = server / "backends" / "python"
        for source in [*(path for path in backend.rglob("*") if path.is_file()), stub]:
            relative = Path(STUB) if source == stub else source.relative_to(backend)
            _copy_once(source, self._backends / "python" / relative)
        self._folder.mkdir(parents=True, exist_ok=True)
        if manifest := self._manifest():
            from models.checks import check_manifest
            from triton_repo.build import build_repository

            progress.message(f"models: {manifest.name} ({manifest.digest[:12]})")
            # A wrong graph is told here, with its name; the server would only say that a model is not ready.
            check_manifest(manifest)
            shutil.rmtree(self._repository, ignore_errors=True)
            build_repository(manifest, self._repository, self._serving(manifest), self._settings.triton_profile)
        if self._server_flags() and not MultiProcessService.present():
            progress.message(f"{PROGRAM} is not installed: the processes of Triton take turns on the GPU")

    def launch(self) -> Launch:
        """Loopback only, own shared-memory prefix."""
        server, libraries = bundle()
        settings = self._settings
        shared_memory = {
            "shm-region-prefix-name": f"{shared_memory_prefix(settings.stack_id)}{os.getpid()}",
            "shm-default-byte-size": settings.triton_shm_default_mb << 20,
            "shm-growth-byte-size": settings.triton_shm_growth_mb << 20,
        }
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            f"--cache-directory={server / 'caches'}",
            f"--cache-config=local,size={settings.triton_cache_mb << 20}",
            # A repository for NVIDIA's container holds this form of its models too.
            *([] if self._on_gpu else ["--model-config-name=cpu"]),
            # Starts in 1 s instead of 9, and does not hang now and then.
            "--disable-auto-complete-config",
            # A model whose process died is loaded anew while the others go on.
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--allow-gpu-metrics={str(self._on_gpu).lower()}",
            "--exit-timeout-secs=10",
            *(f"--backend-config=python,{key}={value}" for key, value in shared_memory.items()),
            *self._server_flags(),
        ]
        for kind, port in self.ports.items():
            command += [f"--{kind}-address={HOST}", f"--{kind}-port={port}"]
        # The stub of Python 3.12 is isolated: it ignores PYTHONPATH, but finds our packages in its working folder.
        packages = Path(str(stack_package.__file__)).parent.parent
        paths = (libpython_folder(), str(libraries), os.environ.get("LD_LIBRARY_PATH"))
        env = {
            **_ENVIRONMENT,
            "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
            # The stub embeds Python and finds its environment through the first python on PATH.
            "PATH": f"{sys.exec_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            # What was compiled for a GPU is found again by the next start.
            "TORCHINDUCTOR_CACHE_DIR": str(self._settings.cache_dir / "torchinductor"),
            "TRITON_CACHE_DIR": str(self._settings.cache_dir / "torchinductor" / "triton"),
            **self._side_by_side(),
        }
        return Launch(tuple(command), env, packages)

    def unready(self) -> str | None:
        """Ready when the server and the named models are."""
        if ports.http_get(self._http, "/v2/health/ready")[0] != 200:
            return "loading models"
        for model in self._settings.triton_ready_models:
            if ports.http_get(self._http, f"/v2/models/{model}/ready")[0] != 200:
                return f"model {model} is not ready"
        return None

    def damage(self, pid: int) -> str | None:
        """A server that answers nobody for long, and model processes that could not be healed."""
        now = time.monotonic()
        if pid != self._heard[0] or ports.http_get(self._http, "/v2/health/live", timeout_s=1.0)[0]:
            self._heard = pid, now
            return self._stubs.damage(pid)
        silence = now - self._heard[1]
        return f"it has not answered for {silence:.0f} s" if silence > self._settings.triton_silence_s else None

    def clean(self) -> None:
        """Regions in /dev/shm outlive a killed server."""
        remove_shared_memory(self._settings.stack_id)

    def _serving(self, manifest: ModelManifest) -> ServingSettings:
        """What was tuned for this machine, then what was asked for."""
        from triton_repo.gpu_settings import GpuSettings
        from triton_repo.serving_settings import ServingSettings
        from triton_repo.tuning import load_tuning

        settings = self._settings
        tuned = load_tuning(settings.data_dir, manifest.digest, settings.triton_profile)
        gpu = GpuSettings.from_json({**(tuned.gpu if tuned else {}), **settings.triton_gpu})
        serving = tuned.serving_settings() if tuned else ServingSettings()
        return replace(serving, gpu=gpu, gpus=settings.triton_gpus, crash_on=settings.triton_crash_on)

    def _server_flags(self) -> list[str]:
        """What the repository asks of its server: memory of the GPUs for the steps of the profile `ensemble`."""
        from triton_repo.build import SERVER_FLAGS

        path = self._repository / SERVER_FLAGS
        return path.read_text(encoding="utf-8").split() if self._on_gpu and path.exists() else []

    def _side_by_side(self) -> dict[str, str]:
        """Where several processes share a GPU, the environment that lets them run at the same time."""
        if not self._server_flags():
            return {}
        marks = marked_environment(self._settings.stack_id, self.name)
        return MultiProcessService(self._folder / "mps").start(marks)

    def _manifest(self) -> ModelManifest | None:
        """The models that the repository is generated from; None when a built one was given."""
        if self._settings.triton_repository is not None:
            return None
        return load_manifest(chosen_folder(self._settings.data_dir, self._settings.models))

    @property
    def _repository(self) -> Path:
        return self._settings.triton_repository or self._folder / "repository"


def _copy_once(source: Path, target: Path) -> None:
    """Copy unless the same (size and time) is there already; whole or not at all."""
    wanted = source.stat()
    if target.exists():
        have = target.stat()
        if (have.st_size, int(have.st_mtime)) == (wanted.st_size, int(wanted.st_mtime)):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)
