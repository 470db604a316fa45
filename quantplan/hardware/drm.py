"""AMD and Intel devices from sysfs: no vendor library, no root."""

from __future__ import annotations

import re
from dataclasses import replace

from quantplan.hardware.facts import GpuFacts, PcieFacts, RamFacts
from quantplan.hardware.nvidia import Bandwidth
from quantplan.hardware.tree import HostTree
from quantplan.units import GIB

_CARDS = "sys/class/drm"
_AMD, _INTEL = "0x1002", "0x8086"
# amdkfd prints the memory clock of GDDR6 as a sixteenth of its transfers a second (RX 6800: 1,000 MHz, 16 Gbit/s);
# HBM moves twice a clock.
_GDDR6_TRANSFERS, _HBM_TRANSFERS, _HBM_BITS = 16, 2, 1024
_SPEED_TO_GENERATION = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
# An AMD part whose own memory is a carve-out of the host's has more GTT than VRAM, or this little VRAM
_CARVE_OUT_BYTES = 4 * GIB


def read_drm(tree: HostTree, ram: RamFacts, *, known: Bandwidth | None = None) -> tuple[list[GpuFacts], list[str]]:
    """AMD and Intel devices that could hold a model, named as llama.cpp's ROCm and SYCL backends count them."""
    gpus: list[GpuFacts] = []
    warnings: list[str] = []
    for card in tree.names(_CARDS, r"card\d+"):
        device = f"{_CARDS}/{card}/device"
        vendor = tree.text(f"{device}/vendor")
        if vendor == _AMD:
            found = _amd(tree, device, ram, warnings)
        elif vendor == _INTEL:
            found = _intel(tree, f"{_CARDS}/{card}", ram, warnings)
        else:
            found = None
        if found is not None:
            gpus.append(_with_table(found, known))
    return gpus, warnings


def _with_table(gpu: GpuFacts, known: Bandwidth | None) -> GpuFacts:
    table = known(gpu.product, gpu.total_bytes) if known else None
    if table is None:
        return gpu
    if gpu.bandwidth_bytes_per_s is not None and abs(gpu.bandwidth_bytes_per_s - table[1]) * 10 <= table[1]:
        return replace(gpu, spec_name=table[0])
    return replace(gpu, spec_name=table[0], bandwidth_bytes_per_s=table[1], bandwidth_source="table")


# ---- AMD


def _amd(tree: HostTree, device: str, ram: RamFacts, warnings: list[str]) -> GpuFacts | None:
    vram, gtt = tree.integer(f"{device}/mem_info_vram_total"), tree.integer(f"{device}/mem_info_gtt_total") or 0
    used, gtt_used = tree.integer(f"{device}/mem_info_vram_used"), tree.integer(f"{device}/mem_info_gtt_used") or 0
    bus_id = _bus_id(tree, device)
    node = _kfd_node(tree, bus_id)
    product = _amd_name(tree, device)
    if vram is None:
        warnings.append(f"{product} ({bus_id}) does not say how much memory it has; it is left out")
        return None
    if used is None or used > vram:
        warnings.append(f"{product} ({bus_id}) claims {used} bytes used of {vram}; assumed nothing is used")
        used = 0
    unified = vram <= _CARVE_OUT_BYTES or (gtt > vram and node.get("cpu_cores_count", 0) > 0)
    total, free = vram, vram - used
    if unified:
        total = min(vram + gtt, ram.total_bytes + vram)
        free = min(free + max(gtt - gtt_used, 0), ram.available_bytes + vram - used)
    width, bandwidth, clock = _amd_bandwidth(tree, node)
    hwmon = _hwmon(tree, device)
    return GpuFacts(
        name="",
        product=product,
        vendor="amd",
        total_bytes=total,
        free_bytes=max(free, 0),
        unified=unified,
        bus_id=bus_id,
        uuid=tree.text(f"{device}/unique_id"),
        numa_node=_node(tree, device),
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_source="clocks" if bandwidth else None,
        bus_width_bits=width,
        memory_clock_hz=clock,
        pcie=_pcie(tree, device),
        power_limit_w=_scaled(tree, f"{hwmon}/power1_cap", 1_000_000),
        power_default_w=_scaled(tree, f"{hwmon}/power1_cap_default", 1_000_000),
        power_draw_w=_scaled(tree, f"{hwmon}/power1_average", 1_000_000),
        temperature_c=_celsius(tree, f"{hwmon}/temp1_input"),
        temperature_slowdown_c=_celsius(tree, f"{hwmon}/temp1_crit"),
    )


def _amd_name(tree: HostTree, device: str) -> str:
    """The marketing name: the card's own, else libdrm's list by device and revision, else the number."""
    own = tree.text(f"{device}/product_name")
    if own:
        return own
    number = (tree.text(f"{device}/device") or "0x0000")[2:].upper()
    revision = (tree.text(f"{device}/revision") or "0x00")[2:].upper()
    for line in (tree.text("usr/share/libdrm/amdgpu.ids") or "").splitlines():
        parts = [part.strip() for part in line.split(",", 2)]
        if len(parts) == 3 and parts[0].upper() == number and parts[1].upper() == revision:
            return parts[2]
    return _pci_name(tree, "1002", number) or f"AMD GPU 1002:{number.lower()}"


def _kfd_node(tree: HostTree, bus_id: str | None) -> dict[str, int]:
    """The compute driver's properties of a device: `location_id` is bus << 8 | device << 3 | function."""
    match = re.fullmatch(r"[0-9a-f]+:([0-9a-f]{2}):([0-9a-f]{2})\.(\d)", bus_id or "")
    if not match:
        return {}
    wanted = int(match[1], 16) << 8 | int(match[2], 16) << 3 | int(match[3])
    nodes = "sys/class/kfd/kfd/topology/nodes"
    for name in tree.names(nodes, r"\d+"):
        told = tree.pairs(f"{nodes}/{name}/properties")
        if told.get("location_id") == str(wanted) and told.get("simd_count", "0") != "0":
            banks = tree.pairs(f"{nodes}/{name}/mem_banks/0/properties")
            return {key: int(value) for key, value in {**told, **banks}.items() if value.isdecimal()}
    return {}


def _amd_bandwidth(tree: HostTree, node: dict[str, int]) -> tuple[int | None, int | None, int | None]:
    """(bus width, bytes a second, clock) from the compute driver's memory bank; None where it does not tell."""
    width, clock_mhz = node.get("width"), node.get("mem_clk_max")
    if not width or not clock_mhz:
        return None, None, None
    transfers = _HBM_TRANSFERS if width >= _HBM_BITS else _GDDR6_TRANSFERS
    return width, clock_mhz * 1_000_000 * transfers * width // 8, clock_mhz * 1_000_000


# ---- Intel


def _intel(tree: HostTree, card: str, ram: RamFacts, warnings: list[str]) -> GpuFacts | None:
    """A discrete Intel card. Integrated graphics are left out: they add no memory to what the CPU has."""
    device = f"{card}/device"
    number = (tree.text(f"{device}/device") or "0x0000")[2:].lower()
    product = _pci_name(tree, "8086", number) or _INTEL_CARDS.get(number) or f"Intel GPU 8086:{number}"
    total = tree.integer(f"{card}/lmem_total_bytes") or tree.integer(f"{device}/tile0/vram0/size_bytes")
    free = tree.integer(f"{card}/lmem_avail_bytes")
    if total is None:
        total = _largest_bar(tree, device)
        if total < GIB:  # the aperture of integrated graphics is 256 MiB
            return None
    if free is None or free > total:
        warnings.append(f"{product} does not say how much of its memory is free; assumed all of it")
        free = total
    hwmon = _hwmon(tree, device)
    return GpuFacts(
        name="",
        product=product,
        vendor="intel",
        total_bytes=total,
        free_bytes=free,
        bus_id=_bus_id(tree, device),
        numa_node=_node(tree, device),
        pcie=_pcie(tree, device),
        power_limit_w=_scaled(tree, f"{hwmon}/power1_max", 1_000_000),
        temperature_c=_celsius(tree, f"{hwmon}/temp1_input"),
    )


# PCI device ids: include/drm/intel/pciids.h
_INTEL_CARDS = {
    "e20b": "Arc B580",
    "e20c": "Arc B570",
    "56a0": "Arc A770",
    "56a1": "Arc A750",
    "56a2": "Arc A580",
    "56a5": "Arc A380",
    "56a6": "Arc A310",
    "e211": "Arc Pro B60",
    "e212": "Arc Pro B50",
}


def _largest_bar(tree: HostTree, device: str) -> int:
    """Bytes of the largest memory window: with a resizable BAR that is all of a card's memory."""
    sizes = [0]
    for line in (tree.text(f"{device}/resource") or "").splitlines()[:6]:
        parts = line.split()
        if len(parts) == 3 and all(re.fullmatch(r"0x[0-9a-fA-F]+", part) for part in parts):
            start, end = int(parts[0], 16), int(parts[1], 16)
            sizes.append(end - start + 1 if end > start else 0)
    return max(sizes)


# ---- what both have


def _bus_id(tree: HostTree, device: str) -> str | None:
    return tree.pairs(f"{device}/uevent").get("PCI_SLOT_NAME")


def _node(tree: HostTree, device: str) -> int | None:
    node = tree.integer(f"{device}/numa_node")
    return node if node is not None and node >= 0 else None


def _hwmon(tree: HostTree, device: str) -> str:
    names = tree.names(f"{device}/hwmon", r"hwmon\d+")
    return f"{device}/hwmon/{names[0]}" if names else f"{device}/hwmon/none"


def _scaled(tree: HostTree, where: str, factor: int) -> float | None:
    value = tree.integer(where)
    return value / factor if value else None


def _celsius(tree: HostTree, where: str) -> int | None:
    value = tree.integer(where)
    return round(value / 1000) if value is not None else None


def _pcie(tree: HostTree, device: str) -> PcieFacts | None:
    found = PcieFacts(
        generation=_generation(tree.text(f"{device}/current_link_speed")),
        width=tree.integer(f"{device}/current_link_width"),
        max_generation=_generation(tree.text(f"{device}/max_link_speed")),
        max_width=tree.integer(f"{device}/max_link_width"),
    )
    return None if found == PcieFacts() else found


def _generation(speed: str | None) -> int | None:
    return _SPEED_TO_GENERATION.get((speed or "").split(" ", maxsplit=1)[0])


def _pci_name(tree: HostTree, vendor: str, device: str) -> str | None:
    """A device's name in the list of PCI ids, where one is installed: the part in brackets, if any."""
    wanted = f"\t{device.lower()}  "
    for where in ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"):
        inside = False
        for line in (tree.text(where) or "").splitlines():
            if line[:1].strip() and not line.startswith("#"):
                inside = line.startswith(vendor.lower() + " ")
            elif inside and line.startswith(wanted):
                bracket = re.search(r"\[([^\]]+)\]", line)
                return bracket[1] if bracket else line[len(wanted) :].strip()
    return None
