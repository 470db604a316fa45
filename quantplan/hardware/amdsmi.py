"""AMD's management library where it is installed: the card's own name and memory bandwidth, which sysfs may lack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from quantplan.hardware.facts import GpuFacts


class AmdSmiRefused(Exception):
    """A call that the library did not answer, or no library."""


class AmdSmi(Protocol):
    """The library by function name; dictionaries come back as they are."""

    def query(self, function: str, *args: object) -> Any:
        """The answer of one function; raises AmdSmiRefused."""


class RealAmdSmi:
    """The library that ROCm installs. Imported and initialised on the first query."""

    def __init__(self) -> None:
        self._module: Any = None

    def query(self, function: str, *args: object) -> Any:
        try:
            if self._module is None:
                import amdsmi

                amdsmi.amdsmi_init()
                self._module = amdsmi
            return getattr(self._module, function)(*args)
        except Exception as error:  # ImportError, KeyError of a missing library, the library's own classes
            raise AmdSmiRefused(f"{function}: {error}") from None


def with_amdsmi(gpus: list[GpuFacts], smi: AmdSmi) -> list[GpuFacts]:
    """The AMD devices with what the library adds, matched by bus address; unchanged where it does not answer."""
    if not any(gpu.vendor == "amd" for gpu in gpus):
        return gpus
    try:
        told = dict(_told(smi))
    except (AmdSmiRefused, TypeError, KeyError, ValueError):
        return gpus
    return [_merged(gpu, told.get(gpu.bus_id or "")) for gpu in gpus]


def _told(smi: AmdSmi) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for handle in smi.query("amdsmi_get_processor_handles"):
        address = str(smi.query("amdsmi_get_gpu_device_bdf", handle)).lower()
        found.append((address, {**_ask(smi, "amdsmi_get_gpu_asic_info", handle), **_ask(smi, _VRAM_INFO, handle)}))
    return found


_VRAM_INFO = "amdsmi_get_gpu_vram_info"


def _ask(smi: AmdSmi, function: str, handle: object) -> dict[str, Any]:
    try:
        return dict(smi.query(function, handle))
    except (AmdSmiRefused, TypeError, ValueError):
        return {}


def _merged(gpu: GpuFacts, told: dict[str, Any] | None) -> GpuFacts:
    if gpu.vendor != "amd" or not told:
        return gpu
    name, bandwidth, width = told.get("market_name"), told.get("vram_max_bandwidth"), told.get("vram_bit_width")
    if isinstance(name, str) and name and gpu.product.startswith("AMD GPU 1002:"):
        gpu = replace(gpu, product=name)
    if isinstance(bandwidth, int) and bandwidth > 0 and gpu.bandwidth_source != "table":  # GB/s
        gpu = replace(gpu, bandwidth_bytes_per_s=bandwidth * 10**9, bandwidth_source="driver")
    if isinstance(width, int) and width > 0:
        gpu = replace(gpu, bus_width_bits=gpu.bus_width_bits or width)
    return gpu
