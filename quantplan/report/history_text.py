"""The history as text: a line a result, and what became worse since the last one that passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantplan.artifact.history import Entry
from quantplan.artifact.regressions import Regression
from quantplan.artifact.results import Metric, Verdict
from quantplan.report.columns import columns
from quantplan.units import format_size

_SHOWN = ("kld_mean", "decode_tokens_per_s", "prefill_tokens_per_s", "output_tokens_per_s")


def history_data(found: Sequence[Entry], worse: Sequence[Regression]) -> dict[str, Any]:
    """The contract of `history --json`: every result as it was written, and the regressions."""
    return {
        "results": [
            {
                "model": entry.model, "quant": entry.quant, "kind": entry.kind, "made_at": entry.made_at,
                "recorded_at": entry.recorded_at, "artifact": entry.artifact, "result": entry.result,
            }
            for entry in found
        ],
        "regressions": list(worse),
    }  # fmt: skip


def history_text(found: Sequence[Entry], worse: Sequence[Regression]) -> str:
    """The oldest first: the newest is nearest to the prompt."""
    if not found:
        return "nothing was recorded yet"
    rows = [["when", "model", "preset", "what", "verdict", "size", "measured"]]
    rows += [_row(entry) for entry in found]
    lines = columns(rows, left=7)
    if worse:
        lines += ["", "Worse than the last that passed"]
        lines += [f"  {_what(one)}: {one.why} (passed {one.before_at[:10]})" for one in worse]
    return "\n".join(lines)


def _row(entry: Entry) -> list[str]:
    size = format_size(entry.artifact.bytes) if entry.artifact else ""
    return [entry.made_at[:16].replace("T", " "), entry.model, entry.quant or "", entry.kind,
            entry.verdict.value if entry.verdict is not Verdict.UNMEASURED else "", size, measured(entry)]  # fmt: skip


def measured(entry: Entry) -> str:
    """The worst text's divergence, or the speeds: what a line has room for."""
    told = []
    for name in _SHOWN:
        of_name = [m for m in entry.result.metrics if m.name == name and m.value is not None]
        if of_name:
            told.append(_figure(name, max(of_name, key=lambda m: m.value or 0.0)))
    return ", ".join(told)


def _figure(name: str, metric: Metric) -> str:
    assert metric.value is not None
    if name == "kld_mean":
        error = f" ± {2 * metric.se:.1g}" if metric.se else ""
        return f"KLD {metric.value:.3g}{error}" + (f" on {metric.corpus}" if metric.corpus else "")
    return f"{name.partition('_')[0]} {metric.value:.1f} tokens/s"


def _what(one: Regression) -> str:
    name = " ".join(part for part in (one.model, one.quant, one.kind) if part)
    metric = f" {one.metric}{f' on {one.corpus}' if one.corpus else ''}" if one.metric else " verdict"
    return name + metric
