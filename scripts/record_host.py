"""Records a host as a fixture folder: what detection reads of /proc, /sys and NVML, without serial numbers.

    python scripts/record_host.py OUT_FOLDER

Writes OUT_FOLDER/root/... (copied files), nvml.json (every answer) and hardware.json (what detection made of them).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from quantplan.hardware.detect import detect_host
from quantplan.hardware.nvml import NvmlRefused, Pynvml
from quantplan.hardware.tree import HostTree

FILES = (
    "proc/cpuinfo", "proc/meminfo", "proc/self/status", "proc/self/cgroup", "proc/self/mountinfo", "proc/swaps",
    "proc/version", "proc/sys/kernel/osrelease", "proc/sys/vm/swappiness", "proc/sys/kernel/numa_balancing",
    "proc/driver/nvidia/version", "etc/os-release", "sys/devices/system/cpu/online",
    "sys/kernel/mm/transparent_hugepage/enabled", "sys/kernel/mm/transparent_hugepage/defrag",
    "usr/local/cuda/version.json",
)  # fmt: skip
PATTERNS = (
    "sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
    "sys/devices/system/cpu/cpu[0-9]*/cache/index*/level",
    "sys/devices/system/cpu/cpu[0-9]*/cache/index*/size",
    "sys/devices/system/cpu/cpu[0-9]*/cache/index*/shared_cpu_list",
    "sys/devices/system/node/node*/meminfo",
    "sys/devices/system/node/node*/cpulist",
    "sys/fs/cgroup/memory.*",
    "sys/fs/cgroup/cpu.*",
    "sys/fs/cgroup/memory/memory.*limit_in_bytes",
    "sys/fs/cgroup/memory/memory.usage_in_bytes",
    "sys/fs/cgroup/cpu/cpu.cfs_*",
    "sys/bus/pci/devices/*/vendor",
    "sys/bus/pci/devices/*/class",
    "sys/class/drm/card[0-9]*/device/*",
    "sys/block/*/dev",
    "sys/block/*/queue/rotational",
)
SECRET = re.compile(r"(GPU|MIG)-[0-9a-f]{8}-[0-9a-f-]+|^(Serial|uuid).*$", re.MULTILINE | re.IGNORECASE)


class RecordingNvml:
    """Passes queries on and keeps the answers; handles become names."""

    def __init__(self) -> None:
        self.real, self.answers, self.names = Pynvml(), {}, {}

    def query(self, function: str, *args: object) -> Any:
        shown = ",".join(self.names.get(id(a), str(a)) for a in args)
        key = f"{function}({shown})"
        try:
            answer = self.real.query(function, *args)
        except NvmlRefused as error:
            self.answers[key] = {"refused": error.code, "text": error.text}
            raise
        if "HandleByIndex" in function:
            name = f"d{shown}" if "Mig" not in function else f"m{shown.replace(',', '_')}"
            self.names[id(answer)] = name
            self.kept = [*getattr(self, "kept", []), answer]
            self.answers[key] = {"handle": name}
        else:
            self.answers[key] = clean(answer)
        return answer


def clean(value: Any) -> Any:
    if isinstance(value, str):
        return SECRET.sub(lambda m: f"{(m[1] or 'x')}-recorded", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    return value


def main() -> None:
    out = Path(sys.argv[1])
    tree = HostTree()
    names = [*FILES, *(str(p.relative_to("/")) for pattern in PATTERNS for p in sorted(Path("/").glob(pattern)))]
    for name in names:
        text = tree.text(name)
        if text is None or len(text) > 200_000:
            continue
        if name == "proc/cpuinfo":
            text = re.sub(r"^(microcode|bugs|bogomips|cpu MHz|apicid|initial apicid)\s*:.*\n", "", text, flags=re.M)
        to = out / "root" / name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(clean(text) + "\n")
    nvml = RecordingNvml()
    host = detect_host(nvml=nvml)
    (out / "nvml.json").write_text(json.dumps(nvml.answers, indent=1) + "\n")
    (out / "hardware.json").write_text(json.dumps(clean(host.to_json()), indent=1) + "\n")
    print(json.dumps(clean(host.to_json())))


if __name__ == "__main__":
    main()
