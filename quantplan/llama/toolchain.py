"""Where llama.cpp is: by option, by environment, on PATH, else the build that `toolchain install` made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantplan.errors import ToolMissing
from quantplan.llama import output
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import REQUIRED_TOOLS, TOOLS, BuildInfo, Origin, Toolchain
from quantplan.places import cache_folder

ENVIRONMENT = "QUANTPLAN_LLAMA_BIN"
SECURITY_FLOOR = 8146  # CVE-2026-27940: the GGUF loader of older builds is unsafe for files you did not make

# The pinned engine: the llama.cpp tree that this sdist on PyPI carries.
SDIST_NAME = "llama-cpp-python"
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
BUILD_NUMBER = 11312  # upstream's tag of COMMIT; the sdist's depth-1 checkout would report 1


def toolchains_folder() -> Path:
    """Where managed builds lie, one folder a key."""
    return cache_folder() / "toolchains"


def find_toolchain(
    *,
    explicit: Path | None = None,
    environ: Mapping[str, str] | None = None,
    run: Runner = run_tool,
) -> Toolchain:
    """The first complete set of tools. Raises ToolMissing when there is none, naming what an incomplete one lacks."""
    env = os.environ if environ is None else environ
    if explicit is not None:
        return _from_folder(explicit, Origin.OPTION, run)
    if named := env.get(ENVIRONMENT):
        return _from_folder(Path(named), Origin.ENVIRONMENT, run)
    on_path = _programs_on_path(env.get("PATH", ""))
    if all(tool in on_path for tool in REQUIRED_TOOLS):
        folder = Path(on_path["llama-server"][0]).resolve().parent
        return _external(Origin.PATH, folder, on_path, run)
    managed = managed_toolchains()
    if managed:
        return managed[0]
    lacking = [tool for tool in REQUIRED_TOOLS if tool not in on_path]
    why = f"is on PATH without {', '.join(lacking)}" if on_path else "was not found (option, environment, PATH, cache)"
    raise ToolMissing(tool="llama.cpp", why=why)


def _from_folder(folder: Path, origin: Origin, run: Runner) -> Toolchain:
    if (folder / "manifest.json").is_file():
        return load_managed(folder)
    base = folder.parent if folder.is_file() else folder
    programs = _programs_on_path(os.pathsep.join((str(base), str(base / "bin"))))
    lacking = [tool for tool in REQUIRED_TOOLS if tool not in programs]
    if lacking:
        raise ToolMissing(tool="llama.cpp", why=f"in {folder} lacks {', '.join(lacking)}")
    return _external(origin, Path(programs["llama-server"][0]).parent, programs, run)


def _programs_on_path(path: str) -> dict[str, tuple[str, ...]]:
    """Each tool that lies on the path: as a program of its own, else as a subcommand of the unified `llama`."""
    unified = shutil.which("llama", path=path)
    programs: dict[str, tuple[str, ...]] = {}
    for tool in TOOLS:
        own = shutil.which(tool, path=path)
        if own:
            programs[tool] = (str(Path(own).absolute()),)
        elif unified:
            name = tool.removeprefix("llama-")
            programs[tool] = (str(Path(unified).absolute()), "serve" if name == "server" else name)
    return programs


def _external(origin: Origin, folder: Path, programs: Mapping[str, tuple[str, ...]], run: Runner) -> Toolchain:
    program = programs["llama-server"]
    told = run((program[0], "--version"), step="llama-server --version", timeout_s=20, check=False)
    lines = (*told.stdout, *told.stderr)
    build = output.parse_version(lines)
    notes = []
    if build.number and 1000 < build.number < SECURITY_FLOOR:
        notes.append(f"build b{build.number} is older than b{SECURITY_FLOOR}: unsafe for files you did not make")
    if build.commit is None or not COMMIT.startswith(build.commit):
        notes.append(f"not the pinned build ({COMMIT[:7]}): exact sizes and memory may differ from the estimates")
    libraries = folder if any(folder.glob("libllama.*")) else None
    return Toolchain(
        origin=origin, folder=folder, programs=programs, build=build, backend=_backend(folder), notes=tuple(notes),
        library_folder=libraries,
    )  # fmt: skip


def _backend(folder: Path) -> str:
    if any(folder.glob("*ggml-cuda*")):
        return "cuda"
    return "cpu" if any(folder.glob("*ggml-cpu*")) else "unknown"


def managed_toolchains() -> tuple[Toolchain, ...]:
    """The finished builds in the cache, the one that fits this quantplan and host first."""
    folders = sorted(toolchains_folder().glob("*/manifest.json"), key=lambda path: -path.stat().st_mtime)
    found = []
    for manifest in folders:
        try:
            found.append(load_managed(manifest.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a manifest of ours: not a toolchain
    cpu = cpu_key()
    return tuple(sorted(found, key=lambda t: (t.sdist_sha256 != SDIST_SHA256, f"cpu {cpu}" not in t.notes)))


def load_managed(folder: Path) -> Toolchain:
    """A finished build from its manifest. Raises ValueError or KeyError when the manifest is not one."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    binaries = folder / "bin"
    programs = {tool: (str(binaries / tool),) for tool in TOOLS if (binaries / tool).is_file()}
    return Toolchain(
        origin=Origin.MANAGED,
        folder=folder,
        programs=programs,
        build=BuildInfo(
            version=manifest["sdist_version"], number=manifest["build_number"], commit=manifest["commit"][:7]
        ),
        sdist_sha256=manifest["sdist_sha256"],
        options=tuple(manifest["options"]),
        backend=manifest["backend"],
        library_folder=binaries,
        notes=(f"cpu {manifest['cpu']}", *manifest["notes"]),
    )


def converter_script(toolchain: Toolchain | None) -> Path | None:
    """convert_hf_to_gguf.py of the pinned tree, or None where no managed toolchain has been installed."""
    candidates = [toolchain] if toolchain and toolchain.origin is Origin.MANAGED else []
    for managed in (*candidates, *managed_toolchains()):
        script = managed.folder / "convert" / "convert_hf_to_gguf.py"
        if script.is_file():
            return script
    return None


def cpu_key() -> str:
    """8 hex digits over this CPU's instruction set: a native build is for the CPU it was made on."""
    flags = ""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            flags = next((" ".join(sorted(line.split(":", 1)[1].split())) for line in lines if line[:5] == "flags"), "")
    except OSError:
        pass
    machine = os.uname().machine if hasattr(os, "uname") else "unknown"
    return hashlib.sha256(f"{machine} {flags}".encode()).hexdigest()[:8]


def unified_per_slot(toolchain: Toolchain, run: Runner = run_tool) -> bool:
    """Whether llama-server of this build knows --kv-unified-per-slot."""
    if toolchain.origin is Origin.MANAGED:
        return True
    told = run((*toolchain.programs["llama-server"], "--help"), step="llama-server --help", timeout_s=20, check=False)
    return any("--kv-unified-per-slot" in line for line in (*told.stdout, *told.stderr))
