"""The doctor: every check over one situation. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quantplan.hardware import checks_engine as engine
from quantplan.hardware import checks_host as host
from quantplan.hardware.examine import Situation
from quantplan.hardware.finding import Finding, Severity

Check = Callable[[Situation], Iterator[tuple[Severity, str, str | None]]]

CHECKS: dict[str, Check] = {
    "driver": engine.driver,
    "driver-age": engine.driver_age,
    "mig": engine.mig,
    "nvcc": engine.nvcc,
    "torch-cuda": engine.torch,
    "cpu-only-build": engine.cpu_only_build,
    "engine-devices": engine.engine_devices,
    "security-floor": engine.security_floor,
    "silent-settings": engine.silent_settings,
    "threads": host.threads,
    "memory-limit": host.memory_limit,
    "swap": host.swap,
    "huge-pages": host.huge_pages,
    "numa-balancing": host.numa_balancing,
    "pcie-link": host.pcie,
    "throttling": host.throttling,
    "power-cap": host.power_cap,
    "disk-speed": host.disk_speed,
    "holes": host.holes,
    "disk-space": host.disk_space,
    "port": host.port,
    "wsl": host.wsl,
    "detection": host.detection,
}


def diagnose(situation: Situation) -> tuple[Finding, ...]:
    """The findings of every check, the worst first."""
    order = list(Severity)
    found = [
        Finding(check=name, severity=severity, reason=reason, fix=fix)
        for name, check in CHECKS.items()
        for severity, reason, fix in check(situation)
    ]
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))
