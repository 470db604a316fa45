"""Building llama.cpp from the pinned sdist into the user's cache: one folder a key, finished or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from quantplan.errors import BadModelFile, NoDiskSpace, ToolFailed
from quantplan.llama import fetch, toolchain
from quantplan.llama.process import OnText, Runner, run_tool
from quantplan.llama.self_test import SelfTestResult, self_test
from quantplan.llama.types import TOOLS, Toolchain
from quantplan.places import cache_folder

NEED_BYTES = 1_200_000_000  # a CPU build was measured at 315 MB (sdist 77, tree 176, objects 62); room for CUDA's
TREE = f"llama_cpp_python-{toolchain.SDIST_VERSION}/vendor/llama.cpp"
# Kept beside the converter: the engine's own list of architectures, which the tables are checked against.
_CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "LICENSE", "src/llama-arch.cpp")
_BUILT = (*TOOLS, "mtmd")  # mtmd: the bindings want libmtmd beside libllama

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One attempt: compiler flags for ggml alone, so that the next attempt recompiles only ggml."""

    name: str
    flags: tuple[str, ...]
    options: tuple[str, ...] = ()


RUNGS = (
    Rung(name="native", flags=()),
    Rung(name="native without AMX", flags=("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")),
    Rung(
        name="AVX2 only",
        flags=("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16", "-mno-avx512f"),
        options=("-DGGML_NATIVE=OFF",),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to build. `backend`: cpu or cuda, already decided for this host."""

    backend: str
    sdist: Path | None = None
    cuda_architectures: str | None = None
    cuda_root: Path | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """CMake options that make one build another."""
        base = (
            "-DCMAKE_BUILD_TYPE=Release",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_APP=OFF",
            "-DLLAMA_BUILD_UI=OFF",
            f"-DLLAMA_BUILD_NUMBER={toolchain.BUILD_NUMBER}",
            f"-DLLAMA_BUILD_COMMIT={toolchain.COMMIT[:7]}",
            "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        )
        if self.backend != "cuda":
            return base
        architectures = self.cuda_architectures or "native"
        root = (f"-DCUDAToolkit_ROOT={self.cuda_root}", f"-DCMAKE_CUDA_COMPILER={self.cuda_root}/bin/nvcc")
        return (*base, "-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}", *(root * bool(self.cuda_root)))

    @property
    def key(self) -> str:
        """Version, backend and a hash over options and CPU: another option, another folder."""
        options = [option for option in self.options if "CUDAToolkit_ROOT" not in option and "nvcc" not in option]
        told = json.dumps([toolchain.SDIST_SHA256, options, toolchain.cpu_key()])
        digest = hashlib.sha256(told.encode()).hexdigest()[:10]
        return f"{toolchain.SDIST_VERSION}-{self.backend}-{digest}"


def install(
    request: Request,
    *,
    say: Say,
    run: Runner = run_tool,
    test: Callable[..., SelfTestResult] = self_test,
    force: bool = False,
) -> Toolchain:
    """The finished toolchain of the request: found in the cache, or built now (about 5 min on 2 cores).

    Two calls at once: the second waits and takes what the first built. An interrupted build leaves a folder
    named .partial that the next one removes. Raises ToolMissing (no compiler), NoDiskSpace, ToolFailed.
    """
    final = toolchain.toolchains_folder() / request.key
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.with_name(f"{request.key}.lock"), say):
        if (final / "manifest.json").is_file() and not force:
            return toolchain.load_managed(final)
        for leftover in final.parent.glob(f"{request.key}.partial*"):
            shutil.rmtree(leftover, ignore_errors=True)
        build_programs = fetch.find_build_programs(say=say, run=run)
        _check_space(final.parent)
        partial = final.with_name(f"{request.key}.partial")
        try:
            manifest = _build(request, partial, build_programs, say=say, run=run, test=test)
            _finish(request, partial, final, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return toolchain.load_managed(final)


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """One install of a key at a time; the kernel frees the lock when its holder dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another quantplan is installing this toolchain: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEED_BYTES:
        raise NoDiskSpace(path=folder, need_bytes=NEED_BYTES, free_bytes=free)


def _build(
    request: Request, partial: Path, programs: fetch.BuildPrograms, *, say: Say, run: Runner,
    test: Callable[..., SelfTestResult],
) -> dict[str, object]:  # fmt: skip
    started = time.monotonic()
    sdist = fetch.fetch_sdist(request.sdist, say=say, run=run)
    source = extract(sdist, partial / "src", say=say)
    reports: list[str] = []
    for rung in RUNGS:
        _compile(request, rung, source, partial, programs, say=say, run=run)
        binaries = partial / "build" / "bin"
        say("self-test: quantizing and running a tiny model of each of Q4_K_M, Q5_K_M, Q8_0")
        result = test({tool: (str(binaries / tool),) for tool in TOOLS}, run=run)
        if result.ok:
            break
        reports.append(f"{rung.name}: {'; '.join(result.failures)}")
        say(f"self-test failed ({reports[-1]})")
        if not result.crashed:
            raise ToolFailed(step="self-test", argv=("llama-quantize",), returncode=1, last_lines=result.failures)
    else:
        raise ToolFailed(step="self-test", argv=("llama-quantize",), returncode=139, last_lines=reports)
    return {
        "schema": "quantplan/toolchain/1",
        "sdist": toolchain.SDIST_NAME,
        "sdist_version": toolchain.SDIST_VERSION,
        "sdist_sha256": toolchain.SDIST_SHA256,
        "commit": toolchain.COMMIT,
        "build_number": toolchain.BUILD_NUMBER,
        "backend": request.backend,
        "options": [*request.options, *rung.options, *rung.flags],
        "cpu": toolchain.cpu_key(),
        "notes": [f"rebuilt after a crash in the self-test ({report})" for report in reports],
        "rung": asdict(rung),
        "compiler": programs.compiler,
        "build_seconds": round(time.monotonic() - started, 1),
        "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def extract(sdist: Path, target: Path, *, say: Say) -> Path:
    """The llama.cpp tree of the sdist, without what no build needs. Raises BadModelFile on a broken archive."""
    say("unpacking llama.cpp")
    target.mkdir(parents=True)
    skipped = ("/media/", "/tests/", "/benches/", "/models/ggml-vocab")
    try:
        with tarfile.open(sdist) as archive:
            wanted = [m for m in archive if m.name.startswith(TREE + "/") and not any(s in m.name for s in skipped)]
            archive.extractall(target, members=wanted, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise BadModelFile(path=sdist, why=f"is not a whole source archive: {error}") from error
    return target / TREE


def _compile(
    request: Request, rung: Rung, source: Path, partial: Path, programs: fetch.BuildPrograms, *, say: Say, run: Runner
) -> None:
    flags = partial / "ggml_flags.cmake"
    words = " ".join(rung.flags)
    flags.write_text(f"add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:{words.replace(' ', ';')}>)\n" if words else "")
    say(f"configuring ({request.backend}, {rung.name})")
    build = partial / "build"
    options = (*request.options, *rung.options, f"-DCMAKE_PROJECT_ggml_INCLUDE={flags}")
    environment = {"PATH": programs.path}
    run(
        (programs.cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={programs.ninja}", "-S", str(source), "-B", str(build),
         *options),
        step="configure llama.cpp", extra_env=environment,
    )  # fmt: skip
    say("compiling (about 5 minutes on 2 cores; with CUDA longer)")
    run(
        (programs.ninja, "-C", str(build), *_BUILT),
        step="compile llama.cpp", on_text=_ninja_progress(say), extra_env=environment,
    )  # fmt: skip


def _ninja_progress(say: Say) -> OnText:
    import re

    shown = [0]

    def on_text(_stream: str, text: str) -> None:
        for done, total in re.findall(r"\[(\d+)/(\d+)\]", text)[-1:]:
            percent = 100 * int(done) // int(total)
            if percent >= shown[0] + 5 or percent == 100 > shown[0]:
                shown[0] = percent
                say(f"  compiled {done} of {total} ({percent} %)")

    return on_text


def _finish(request: Request, partial: Path, final: Path, manifest: dict[str, object]) -> None:
    """Lays out the finished folder beside its final name and renames it there; the manifest is written last."""
    ready = partial / "ready"
    (ready / "bin").mkdir(parents=True)
    for item in (partial / "build" / "bin").iterdir():
        shutil.copy2(item, ready / "bin" / item.name, follow_symlinks=False)
    tree = partial / "src" / TREE
    if request.cuda_root:  # the wheels' libraries lie on no search path: beside the tools their rpath finds them
        for library in (request.cuda_root / "lib").glob("lib*.so.*"):
            (ready / "bin" / library.name).symlink_to(library)
    converter = ready / "convert"
    converter.mkdir()
    for name in _CONVERTER:
        if (tree / name).is_dir():
            shutil.copytree(tree / name, converter / name)
        else:
            (converter / name).parent.mkdir(exist_ok=True)
            shutil.copy2(tree / name, converter / name)
    (ready / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if final.exists():
        shutil.rmtree(final)
    os.sync()
    ready.rename(final)


def nvidia_host() -> bool:
    """Whether an NVIDIA driver is loaded here: then a CPU build must be asked for in so many words."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def decide_backend(asked: str, *, say: Say, sdist: Path | None = None, run: Runner = run_tool) -> Request:
    """cpu or cuda for this host. `auto`: CUDA where a GPU is, with the toolkit found or PyPI's CUDA compiler."""
    if asked == "cpu" or (asked == "auto" and not nvidia_host()):
        if asked == "auto" and shutil.which("nvcc"):
            say("a CUDA toolkit is here but no NVIDIA GPU: building for the CPU (ask for cuda to build it anyway)")
        return Request(backend="cpu", sdist=sdist)
    architectures = cuda_architectures(run)
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc:
        return Request(backend="cuda", sdist=sdist, cuda_architectures=architectures)
    root = fetch.cuda_from_wheels(cache_folder() / "cuda-wheels", say=say, run=run)
    return Request(backend="cuda", sdist=sdist, cuda_architectures=architectures, cuda_root=root)


def cuda_architectures(run: Runner = run_tool) -> str | None:
    """The compute capabilities of the cards present, as CMake wants them: `86-real;89-real`."""
    argv = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    try:
        told = run(argv, step="ask for the cards' compute capability", timeout_s=20)
    except ToolFailed:
        return None
    found = sorted({line.strip().replace(".", "") for line in told.stdout if line.strip()})
    return ";".join(f"{capability}-real" for capability in found) or None
