"""Checks of what the engine needs: driver, CUDA, its build, its silent settings. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantplan.hardware.engine_devices import named_by_engine
from quantplan.hardware.examine import Situation
from quantplan.hardware.finding import Severity
from quantplan.hardware.system import OLDEST_DRIVER, driver_runs

_NO_ANSWER = re.compile(r"NVIDIA.*(does not answer|did not answer|makes no sense)")


def driver(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for warning in now.host.warnings:
        if _NO_ANSWER.search(warning):
            yield Severity.BREAKS, warning, _driver_fix(now, warning)


def _driver_fix(now: Situation, warning: str) -> str:
    system = now.host.system
    if "mismatch" in warning:
        return "sudo reboot"  # the library was updated under the loaded module
    if system and system.wsl:
        return "wsl --update"
    if system and system.container == "kubernetes":
        return "kubectl set resources deployment/YOUR-SERVER --limits=nvidia.com/gpu=1"
    if system and system.container:
        return "docker run --gpus all ...  # with nvidia-container-toolkit on the host"
    return "sudo modprobe nvidia && nvidia-smi"


def mig(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for warning in now.host.warnings:
        if "in MIG mode and has no instance" in warning:
            yield Severity.BREAKS, warning, "sudo nvidia-smi mig -lgip && sudo nvidia-smi mig -cgi PROFILE -C"
        elif "one MIG instance" in warning:
            yield Severity.NOTE, warning, "export CUDA_VISIBLE_DEVICES=MIG-...  # one of: nvidia-smi -L"


def driver_age(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    runtime = now.cuda.engine_runtime
    if runtime is not None and driver_runs(now.cuda, runtime) is False:
        need = OLDEST_DRIVER.get(runtime)
        yield (
            Severity.BREAKS,
            f"the engine links CUDA {runtime}, which needs driver {need} or newer; here is {now.cuda.driver}",
            f"sudo apt-get install nvidia-driver-{need}",
        )


def nvcc(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    nvcc = now.cuda.nvcc
    if nvcc is not None and driver_runs(now.cuda, nvcc[0]) is False:
        yield (
            Severity.HURTS,
            f"nvcc {nvcc[0]}.{nvcc[1]} builds programs that driver {now.cuda.driver} cannot run",
            f"sudo apt-get install nvidia-driver-{OLDEST_DRIVER.get(nvcc[0])}",
        )


def torch(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    torch = now.cuda.torch_runtime
    if torch is not None and now.cuda.driver is not None and driver_runs(now.cuda, torch[0]) is False:
        yield (
            Severity.HURTS,
            f"torch is built for CUDA {torch[0]}.{torch[1]}, which driver {now.cuda.driver} cannot run "
            f"(the engine links CUDA {now.cuda.engine_runtime or 'none'})",
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cpu",
        )


# ---- the engine


def cpu_only_build(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    if now.engine is not None and now.host.gpus and not engine_gpus(now) and now.engine.backend == "cpu":
        names = ", ".join(gpu.product for gpu in now.host.gpus)
        backend = "cuda" if any(gpu.vendor == "nvidia" for gpu in now.host.gpus) else "auto"
        yield (
            Severity.BREAKS,
            f"the engine in {now.engine.folder} is built for the CPU only, and there is {names}",
            f"quantplan toolchain install --backend {backend}",
        )


def engine_devices(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    if now.engine is None or now.engine.backend == "cpu" or now.engine.devices is None:
        return
    _, warnings = named_by_engine(now.host.gpus, now.engine.devices)
    for warning in warnings:
        yield Severity.BREAKS, warning, f"{now.engine.folder}/llama-server --list-devices; nvidia-smi -L"


def engine_gpus(now: Situation) -> bool:
    devices = now.engine.devices if now.engine else None
    return any(not device.name.startswith(("CPU", "BLAS", "RPC")) for device in devices or ())


def security_floor(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    engine = now.engine
    if engine and engine.build_number and 1000 < engine.build_number < engine.oldest_safe_build:
        yield (
            Severity.BREAKS,
            f"build b{engine.build_number} in {engine.folder} is older than b{engine.oldest_safe_build} "
            "(CVE-2026-27940): unsafe for files you did not make",
            "quantplan toolchain install",
        )


def silent_settings(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for path in now.config_files:
        reason = f"{path} sets flags of every llama.cpp tool that are not written on its command line"
        yield Severity.HURTS, reason, f"mv {path} {path}.off"
    if now.variables:
        names = " ".join(now.variables)
        yield Severity.HURTS, f"the environment sets flags of llama.cpp: {names}", f"unset {names}"
