"""A build in words: its use of the disk, why its steps run, how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantplan.pipeline.disk import DiskMode, DiskPlan
from quantplan.pipeline.remote.weights import N_PASSES
from quantplan.pipeline.runner import Decision
from quantplan.pipeline.schedule import Kind
from quantplan.units import format_size

_HOW = {
    DiskMode.FAST: "intermediates stay",
    DiskMode.TIGHT: "intermediates are deleted once used up",
    DiskMode.REMOTE: "intermediates are deleted once used up",
    DiskMode.AUTO: "",
}


def disk_lines(plan: DiskPlan, *, exact: bool, whole: bool, weight_bytes: int) -> Iterator[str]:
    """The peak in one line, and what it costs to read the weights from the hub; with `whole` every step that writes
    or frees."""
    about = "" if exact else "about "
    yield (
        f"Disk: {about}{format_size(plan.peak_bytes)} at most ({plan.peak_step}), "
        f"{about}{format_size(plan.final_bytes)} at the end; {_HOW[plan.mode]}"
    )
    if plan.mode is DiskMode.REMOTE:
        yield f"Weights: {remote_words(weight_bytes)}"
    if not whole:
        return
    for step in plan.steps:
        if step.writes_bytes or step.frees_bytes:
            change = f"+{format_size(step.writes_bytes)}" if step.writes_bytes else f"-{format_size(step.frees_bytes)}"
            yield f"  {step.name:<40} {change:>12}  {format_size(step.on_disk_bytes):>12} on the disk"


def remote_words(weight_bytes: int) -> str:
    """The price of a small disk."""
    size, traffic = format_size(weight_bytes), format_size(N_PASSES * weight_bytes)
    return f"{size}, read from the hub and not kept: once to prove them, once to convert them ({traffic} of traffic)"


def explanation_lines(decisions: Sequence[Decision]) -> Iterator[str]:
    """Every step and why it runs or is skipped."""
    for one in decisions:
        if one.action.kind is not Kind.DROP:
            yield f"  {one.action.name:<40} {'runs' if one.runs else 'skipped'}: {one.reason}"


def status_text(builds: Sequence[Mapping[str, Any]], output: Path) -> str:
    """Each build, who works on it, and its steps."""
    if not builds:
        return f"no builds in {output}"
    lines = []
    for one in builds:
        steps = one["steps"]
        done = sum(step["state"] in ("done", "not needed") for step in steps)
        who = f"process {one['pid']} works on it" if one["pid"] else "nobody works on it"
        whole = "finished" if done == len(steps) else f"{done} of {len(steps)} steps done, {who}"
        lines.append(f"{one['name']}: {whole}")
        for step in steps:
            took = f"{step['seconds']:.1f} s" if step.get("seconds") else ""
            now = step.get("progress", "") if step["state"] == "running" else took
            lines.append(f"  {step['name']:<40} {step['state']:<10} {now}".rstrip())
    return "\n".join(lines)
