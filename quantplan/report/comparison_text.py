"""A comparison as a table: the smallest first, divergence with two standard errors, what is pointless marked."""

from __future__ import annotations

from quantplan.report.columns import columns
from quantplan.report.comparison import Compared, Comparison, Measured
from quantplan.units import format_mib, format_size


def comparison_text(found: Comparison) -> str:
    """The table, what was compared, and why some are not worth their size."""
    texts = f"mean over {', '.join(found.texts)}" if found.texts else "no divergence was measured"
    lines = [f"{found.source}: {texts}; ± is two standard errors", ""]
    lines += columns(table(found))
    pointless = [one for one in found.artifacts if one.dominated_by]
    if pointless:
        lines.append("")
    lines += [f"{one.name} gives nothing for its size: {one.dominated_by} is as good" for one in pointless]
    return "\n".join(lines)


def table(found: Comparison) -> list[list[str]]:
    """The headings and a row an artifact; columns of which nothing is known are left out."""
    rows = [_headings(found), *(_cells(one, found) for one in found.artifacts)]
    keep = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    return [[row[i] for i in keep] for row in rows]


def _headings(found: Comparison) -> list[str]:
    memory = (f"memory {device}" for device in found.devices)
    return ["artifact", "size", "KLD", "PPL ratio", "same top", "decode t/s", "prefill t/s", *memory, "gate", "pareto"]


def _cells(one: Compared, found: Comparison) -> list[str]:
    memory = one.memory_bytes or (None,) * len(found.devices)
    return [
        one.name,
        format_size(one.bytes),
        _figure(one.kld, ".3g", ".2g"),
        f"{one.ppl_ratio:.4f}" if one.ppl_ratio is not None else "",
        f"{100 * one.same_top:.2f} %" if one.same_top is not None else "",
        _figure(one.decode_tokens_per_s, ".1f", ".1f"),
        _figure(one.prefill_tokens_per_s, ".1f", ".1f"),
        *(format_mib(n) if n is not None else "" for n in memory),
        one.verdict or "",
        {True: "yes", False: "no", None: ""}[one.pareto],
    ]


def _figure(measured: Measured | None, form: str, error_form: str) -> str:
    """`0.00114 ± 0.00033`."""
    if measured is None:
        return ""
    error = f" ± {format(2 * measured.se, error_form)}" if measured.se is not None else ""
    return format(measured.value, form) + error
