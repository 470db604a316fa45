"""The host that a plan is for: the one a person names, else this one with what was measured on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantplan.hardware.facts import HostFacts
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain


def host_for(machine: str | None, *, models_folder: Path | None = None) -> HostFacts:
    """The named machine, or this one as detected, with the bandwidths kept from its last measurement.

    Where cards are unlike, the engine is asked for their order: CUDA and the driver count differently."""
    if machine:
        from quantplan.hardware.profiles import load_profile

        return load_profile(machine)
    from quantplan.hardware.detect import detect_host
    from quantplan.hardware.measure import read_measured, with_measured

    host = detect_host(models_folder=models_folder)
    if len({gpu.product for gpu in host.gpus}) > 1:
        host = in_engine_order(host)
    return with_measured(host, read_measured(host))


def in_engine_order(host: HostFacts, *, run: Runner = run_tool, toolchain: Toolchain | None = None) -> HostFacts:
    """The host with its GPUs in the engine's order and with its names, and warnings about those that only one of both
    sees; as it was where no engine is installed or it does not answer."""
    from quantplan.hardware.engine_devices import list_devices, named_by_engine
    from quantplan.hardware.examine import installed_toolchain

    tools = toolchain or installed_toolchain()
    program = tools.programs.get("llama-server") if tools else None
    devices = list_devices(program, run) if program else None
    if not devices:
        return host
    gpus, warnings = named_by_engine(host.gpus, devices)
    kept = tuple(warning for warning in host.warnings if "CUDA counts unlike cards" not in warning)
    return replace(host, gpus=gpus, warnings=(*kept, *warnings))
