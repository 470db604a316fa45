"""What was found before the first byte, as text."""

from __future__ import annotations

from collections.abc import Iterator

from quantplan.pipeline.checks import Level, Preflight
from quantplan.report.building import remote_words
from quantplan.units import format_size

_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.WARNING: "warn", Level.REFUSED: "NO"}


def preflight_text(found: Preflight, *, following: str | None) -> str:
    """Checks, sizes, disk by step, memory by step, and whether the build can start."""
    at = f" at {found.revision[:12]}" if found.revision else ""
    lines = [f"{found.model}{at}", *_checks(found), *_download(found), *_sizes(found), *_disk(found), *_memory(found)]
    if found.refusals:
        lines += ["", "Nothing was built: " + ("; ".join(str(error) for error in found.refusals))]
    elif following:
        lines += ["", f"Next: {following}"]
    return "\n".join(lines)


def _checks(found: Preflight) -> Iterator[str]:
    for check in found.checks:
        yield f"  {_MARKS[check.level]:<5}{check.name:<14}{check.text}"


def _download(found: Preflight) -> Iterator[str]:
    if found.repo:
        rest = "all of it" if found.missing_bytes == found.download_bytes else format_size(found.missing_bytes)
        yield ""
        yield f"Download: {len(found.files)} files, {format_size(found.download_bytes)}; to be fetched: {rest}"
    if found.remote_bytes:
        yield f"Weights: {remote_words(found.remote_bytes)}"


def _sizes(found: Preflight) -> Iterator[str]:
    if found.sizes is None:
        return
    yield ""
    yield "Files" if found.sizes_are_exact else "Files (tensors only: the header is not known)"
    for name, n_bytes in (("BF16", found.sizes.converted_bytes), *found.sizes.quants.items()):
        yield f"  {name:<10} {n_bytes:>18,} B  {format_size(n_bytes):>10}"
    yield f"  {'scores':<10} {found.sizes.logits_bytes:>18,} B  {format_size(found.sizes.logits_bytes):>10}  a text"


def _disk(found: Preflight) -> Iterator[str]:
    if found.disk is None:
        return
    yield ""
    yield f"Disk, {found.disk.mode.value}: what lies there after each step ({format_size(found.free_bytes)} free)"
    shown: dict[str, int] = {}
    for step in found.disk.steps:
        if step.writes_bytes or step.name.startswith("drop source"):
            name = "evaluate (the most of all)" if step.name.startswith("evaluate ") else step.name
            shown[name] = max(shown.get(name, 0), step.on_disk_bytes)
    for name, n_bytes in (*shown.items(), ("at the end", found.disk.final_bytes)):
        mark = "  <- peak" if n_bytes == found.disk.peak_bytes and name != "at the end" else ""
        yield f"  {name:<36} {format_size(n_bytes):>10}{mark}"


def _memory(found: Preflight) -> Iterator[str]:
    if not found.memory:
        return
    yield ""
    yield f"Memory at the peak of each tool ({format_size(found.memory_limit_bytes)} available)"
    for step in found.memory:
        mapped = f", {format_size(step.mapped_bytes)} of a file mapped" if step.mapped_bytes else ""
        yield f"  {step.name:<36} {format_size(step.need_bytes):>10}{mapped}"
