"""A load check as text."""

from __future__ import annotations

from quantplan.artifact.results import Metric, Result
from quantplan.units import MIB

_SHOWN = (
    ("ttft_p50_s", "time to first token, median"),
    ("ttft_p95_s", "time to first token, 95 of 100"),
    ("per_token_p50_s", "time per token, median"),
    ("per_token_p95_s", "time per token, 95 of 100"),
    ("decode_tokens_per_s", "tokens a second, all streams"),
    ("goodput_requests_per_s", "good requests a second"),
    ("goodput_tokens_per_s", "good tokens a second"),
    ("goodput_share", "share of good requests"),
    ("prompt_tokens_p50", "prompt tokens, median"),
    ("errors", "errors"),
    ("refused", "told to come back"),
)


def describe_load(result: Result) -> str:
    """The figures, one a line, and the verdict with its reason."""
    by_name = {metric.name: metric for metric in result.metrics}
    lines = [_row(text, by_name[name]) for name, text in _SHOWN if name in by_name]
    lines += [_row(name.removesuffix("_used_peak_bytes") + " memory in use, peak", metric)
              for name, metric in by_name.items() if name.endswith("_used_peak_bytes")]  # fmt: skip
    return "\n".join([*lines, f"{result.verdict.value}: {result.reason}"])


def _row(text: str, metric: Metric) -> str:
    limit = f"   ({metric.limit_is} {_value(metric, metric.limit)})" if metric.limit is not None else ""
    return f"{text:<36} {_value(metric, metric.value):>12}{limit}"


def _value(metric: Metric, value: float | None) -> str:
    if value is None:
        return "unknown"
    if metric.name.endswith("_bytes"):
        return f"{value / MIB:,.0f} MiB"
    if metric.name.endswith("_per_s"):
        return f"{value:,.1f}"
    if metric.name.endswith("_s"):
        return f"{1000 * value:,.1f} ms"
    return f"{value:g}"
