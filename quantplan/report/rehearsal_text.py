"""A rehearsal as text: planned and measured side by side."""

from __future__ import annotations

from quantplan.rehearsal.rehearse import Rehearsal
from quantplan.units import MIB

_PARTS = ("model", "mapped", "repacked", "context", "compute", "output")


def rehearsal_text(found: Rehearsal) -> str:
    """What rehearse prints."""
    lines = [f"Rehearsed with llama.cpp {found.measured.engine_build}, weights all {found.weights}", ""]
    lines.append(f"{'MiB':22}{'planned':>12}{'measured':>12}")
    for device in found.planned.devices:
        measured = found.measured.device(device.name)
        for part in _PARTS:
            pair = [getattr(one, f"{part}_bytes") for one in (device, measured)]
            if any(pair) and not (part == "model" and measured.mapped_bytes):
                lines.append(f"{device.name + ' ' + part:22}{pair[0] / MIB:12.2f}{pair[1] / MIB:12.2f}")
    for name, n_bytes in (
        ("anonymous memory", found.peak_anonymous_bytes),
        ("resident memory", found.peak_resident_bytes),
    ):
        if n_bytes is not None:
            lines.append(f"{'peak ' + name:34}{n_bytes / MIB:12.2f}")
    lines += ["", f"Ready after {found.ready_s:.1f} s (no weights were read"
              + (f"; loading them takes about {found.load_s:.1f} s)" if found.load_s is not None else ")")]  # fmt: skip
    if found.speed is not None:
        lines.append(f"Prefill {found.speed.prefill_per_s:.1f} tokens/s over {found.speed.n_prompt}, decode "
                     f"{found.speed.decode_per_s:.1f} tokens/s over {found.speed.n_decoded} (weightless)")  # fmt: skip
    return "\n".join([*lines, *(f"Note: {note}" for note in found.notes)])
