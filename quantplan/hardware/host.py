"""The host that a plan is for: the one a person names, else this one with what was measured on it."""

from __future__ import annotations

from pathlib import Path

from quantplan.hardware.facts import HostFacts


def host_for(machine: str | None, *, models_folder: Path | None = None) -> HostFacts:
    """The named machine, or this one as detected, with the bandwidths kept from its last measurement."""
    if machine:
        from quantplan.hardware.profiles import load_profile

        return load_profile(machine)
    from quantplan.hardware.detect import detect_host
    from quantplan.hardware.measure import read_measured, with_measured

    host = detect_host(models_folder=models_folder)
    return with_measured(host, read_measured(host))
