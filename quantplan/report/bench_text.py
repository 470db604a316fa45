"""A bench as text: what was measured on each device, and how far the prediction was off."""

from __future__ import annotations

from quantplan.rehearsal.bench import BenchReport


def bench_text(report: BenchReport) -> str:
    """What bench prints."""
    lines = [f"Measured with llama.cpp {report.engine_build} at {report.measured_at}", ""]
    head = (
        "model",
        "preset",
        "device",
        "what",
        "tokens",
        "depth",
        "best/s",
        "median/s",
        "spread",
        "predicted",
        "off by",
    )
    rows = [head]
    for run in report.runs:
        rows.append((
            run.model, run.quant, run.device, run.kind, f"{run.n_tokens:,}", f"{run.n_depth:,}",
            f"{run.best_per_s:.1f}", f"{run.median_per_s:.1f}", f"{run.spread:.0%}", f"{run.predicted_per_s:.1f}",
            f"{run.error:+.0%}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        cells = [cell.rjust(w) if i > 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    zeros = any(run.weights == "zeros" for run in report.runs)
    lines += ["", f"Kept in {report.kept}: predictions for this host are corrected by it from now on."]
    if zeros:
        lines.append("Weights are all zero: a mixture of experts takes the same experts for every token.")
    return "\n".join(lines)
