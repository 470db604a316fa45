"""The ground the engine stands on: kernel, container, WSL, and the versions of driver and CUDA side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import ToolFailed
from quantplan.hardware.facts import SystemFacts
from quantplan.hardware.tree import HostTree
from quantplan.llama.process import Runner

# The oldest driver of each CUDA major release's minor-version compatibility (CUDA release notes, table 2)
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
NVCC_FOLDERS = ("/usr/local/cuda/bin", "/opt/cuda/bin")  # where NVIDIA's and Arch's packages put it, off PATH
_NVCC_TIMEOUT_S = 10.0


def read_system(
    tree: HostTree,
    *,
    env: Mapping[str, str],
    machine: str | None = None,
    driver: str | None = None,
    driver_cuda: tuple[int, int] | None = None,
) -> SystemFacts:
    """A Linux host's system. `machine`, `driver` and `driver_cuda` come from who asked for them."""
    release = tree.text("proc/sys/kernel/osrelease") or _release_of(tree.text("proc/version"))
    return SystemFacts(
        kernel=release,
        machine=machine,
        distribution=_distribution(tree),
        wsl=wsl_version(tree, release),
        container=container_of(tree, env),
        driver=driver or _module_version(tree),
        driver_cuda=driver_cuda,
        nvcc=find_nvcc(tree, env)[1],
    )


def _release_of(version: str | None) -> str | None:
    words = (version or "").split()
    return words[2] if len(words) > 2 and words[:2] == ["Linux", "version"] else None


def _distribution(tree: HostTree) -> str | None:
    name = tree.pairs("etc/os-release").get("PRETTY_NAME", "")
    return name.strip("\"'") or None


def wsl_version(tree: HostTree, release: str | None) -> int | None:
    """1 or 2 under Windows' subsystem for Linux, else None."""
    lower = (release or "").lower()
    if "microsoft" not in lower:
        return None
    return 2 if "wsl2" in lower or tree.exists("dev/dxg") else 1


def container_of(tree: HostTree, env: Mapping[str, str]) -> str | None:
    """Which container we are in, the outermost manager's name first."""
    if env.get("KUBERNETES_SERVICE_HOST") or tree.exists("var/run/secrets/kubernetes.io"):
        return "kubernetes"
    if tree.exists("run/.containerenv"):
        return "podman"
    if tree.exists(".dockerenv"):
        return "docker"
    told = env.get("container") or tree.text("run/systemd/container") or ""
    if told:
        return told
    groups = tree.text("proc/1/cgroup") or tree.text("proc/self/cgroup") or ""
    for mark, name in (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("lxc", "lxc")):
        if re.search(rf"(^|[:/.-]){mark}", groups, flags=re.MULTILINE):
            return name
    return "lxc" if "lxcfs" in (tree.text("proc/self/mountinfo") or "") else None


def _module_version(tree: HostTree) -> str | None:
    """The loaded NVIDIA kernel module's version, for when its library does not answer."""
    text = tree.text("proc/driver/nvidia/version") or ""
    match = re.search(r"(?:Kernel Module|for \w+)\s+(?:for \w+\s+)?(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else tree.text("sys/module/nvidia/version")


def find_nvcc(tree: HostTree, env: Mapping[str, str]) -> tuple[str | None, tuple[int, int] | None]:
    """(toolkit folder, version) of the CUDA compiler, from the toolkit's own version file: nothing is run."""
    on_path = [folder.removesuffix("/bin") for folder in env.get("PATH", "").split(":") if folder.endswith("/bin")]
    folders = [env.get("CUDA_HOME"), env.get("CUDA_PATH"), *on_path, "/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda"]
    for folder in filter(None, folders):
        text = tree.text(f"{folder}/version.json") or ""
        match = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"(\d+)\.(\d+)', text)
        if match and tree.exists(f"{folder}/bin/nvcc"):
            return folder, (int(match[1]), int(match[2]))
    if tree.exists("usr/bin/nvcc"):
        match = re.search(r"#define CUDA_VERSION (\d+)", tree.text("usr/include/cuda.h") or "")
        version = int(match[1]) if match else 0
        return "/usr", (version // 1000, version % 1000 // 10) if version else None
    return None, None


def ask_nvcc(env: Mapping[str, str], run: Runner, *, folders: Sequence[str] = NVCC_FOLDERS) -> tuple[int, int] | None:
    """The version that nvcc itself tells, found as a shell finds it, else in `folders`. On PATH may lie a wrapper with
    no toolkit around it, and not every toolkit has a version file. None where there is none or it does not answer."""
    import shutil

    program = shutil.which("nvcc", path=env.get("PATH", "")) or shutil.which("nvcc", path=os.pathsep.join(folders))
    if program is None:
        return None
    try:
        told = run((program, "--version"), step="nvcc --version", timeout_s=_NVCC_TIMEOUT_S, check=False)
    except ToolFailed:
        return None
    match = re.search(r"release (\d+)\.(\d+)", "\n".join(told.stdout))
    return (int(match[1]), int(match[2])) if match and told.returncode == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaVersions:
    """Everything that must fit together. None is not there or not known; runtimes are major versions."""

    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    nvcc: tuple[int, int] | None = None
    engine_runtime: int | None = None
    torch_runtime: tuple[int, int] | None = None


def linked_cuda_runtime(folder: Path) -> int | None:
    """The CUDA runtime that the engine in a folder links, by the names inside libggml-cuda.so; None for a CPU build."""
    import mmap

    for library in sorted(folder.glob("*ggml-cuda*.so*")) + sorted(folder.glob("../lib/*ggml-cuda*.so*")):
        try:
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = re.search(rb"libcudart\.so\.(\d+)", data) or re.search(rb"libcublas\.so\.(\d+)", data)
                if found:
                    return int(found[1])
        except (OSError, ValueError):
            continue
    return None


def torch_cuda(site_packages: list[str]) -> tuple[int, int] | None:
    """The CUDA version torch was built with, read from its version file without importing it."""
    for folder in site_packages:
        try:
            text = (Path(folder) / "torch" / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"^cuda\b[^=\n]*=\s*['\"](\d+)\.(\d+)['\"]", text, flags=re.MULTILINE)
        return (int(match[1]), int(match[2])) if match else None
    return None


def driver_runs(versions: CudaVersions, major: int) -> bool | None:
    """Whether the driver runs programs of a CUDA major version; None where the driver is not known."""
    number = re.match(r"(\d+)", versions.driver or "")
    oldest = OLDEST_DRIVER.get(major)
    if number is None or oldest is None:
        return versions.driver_cuda[0] >= major if versions.driver_cuda else None
    return int(number[1]) >= oldest
