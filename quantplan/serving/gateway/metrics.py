"""Counters and histograms in Prometheus' text format, and what their distribution suggests."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

PREFIX = "quantplan_gateway_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
N_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_CONTEXT_STEP = 256  # a suggested context is a whole number of these
_TOKEN_STEP = 64  # totals are kept in steps of this, rounded up: bounded memory at any traffic

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Observations by upper bound, for one set of labels after another."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._of: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, value: float, **labels: str) -> None:
        counts, total = self._of.setdefault(tuple(sorted(labels.items())), ([0] * (len(self.bounds) + 1), [0.0]))
        counts[bisect_left(self.bounds, value)] += 1
        total[0] += value

    def lines(self, name: str) -> Iterable[str]:
        for labels, (counts, total) in self._of.items():
            seen = 0
            for bound, count in zip((*self.bounds, None), counts, strict=True):
                seen += count
                told = "+Inf" if bound is None else f"{bound:g}"
                yield f"{name}_bucket{_braces((*labels, ('le', told)))} {seen}"
            yield f"{name}_sum{_braces(labels)} {total[0]:.9g}"
            yield f"{name}_count{_braces(labels)} {seen}"


class Metrics:
    """Everything the gateway counts. Label values are names of models, keys and codes that we chose or checked: a
    client cannot invent one, so their number is bounded."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self.prompt_tokens: Counter[Labels] = Counter()
        self.completion_tokens: Counter[Labels] = Counter()
        self.counted_prompts: Counter[Labels] = Counter()
        self.swaps: Counter[Labels] = Counter()
        self.ttft = Histogram(SECONDS)
        self.per_token = Histogram(TOKEN_SECONDS)
        self.whole = Histogram(SECONDS)
        self.queued = Histogram(SECONDS)
        self.request_tokens = Histogram(N_TOKENS)
        self._totals: dict[str, Counter[int]] = {}

    def count(self, counter: Counter[Labels], amount: int = 1, **labels: str) -> None:
        counter[tuple(sorted(labels.items()))] += amount

    def add_tokens(self, *, model: str, key: str, n_prompt: int, n_completion: int) -> None:
        """One answered request."""
        self.count(self.prompt_tokens, n_prompt, model=model, key=key)
        self.count(self.completion_tokens, n_completion, model=model, key=key)
        self.request_tokens.observe(n_prompt + n_completion, model=model)
        steps = -(-(n_prompt + n_completion) // _TOKEN_STEP)
        self._totals.setdefault(model, Counter())[steps * _TOKEN_STEP] += 1

    def suggested_n_ctx(self, model: str) -> int | None:
        """The context that would have held 99 of 100 requests, prompt and answer; None before the first."""
        found = quantile(self._totals.get(model, {}), 0.99)
        return None if found is None else -(-int(found) // _CONTEXT_STEP) * _CONTEXT_STEP

    def render(self, gauges: Mapping[str, tuple[str, Sequence[tuple[Labels, float]]]]) -> str:
        """The exposition; `gauges` are values of this moment: name -> (help, ((labels, value), …))."""
        out: list[str] = []
        for name, text, counter in (
            ("requests_total", "Requests by outcome.", self.requests),
            ("prompt_tokens_total", "Prompt tokens of answered requests.", self.prompt_tokens),
            ("completion_tokens_total", "Tokens written.", self.completion_tokens),
            (
                "prompt_counts_total",
                "How a prompt's length was checked: bound, exact or unknown.",
                self.counted_prompts,
            ),
            ("swaps_total", "Models loaded in place of others.", self.swaps),
        ):
            out += _head(name, text, "counter")
            out += [f"{PREFIX}{name}{_braces(labels)} {value}" for labels, value in counter.items()]
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From the whole request to the first text of a stream.", self.ttft),
            ("time_per_output_token_seconds", "Mean of a request, after its first token.", self.per_token),
            ("request_seconds", "From the whole request to the end of its answer.", self.whole),
            ("queue_seconds", "Waiting for a place.", self.queued),
            ("request_tokens", "Prompt and answer of a request.", self.request_tokens),
        ):
            out += [*_head(name, text, "histogram"), *histogram.lines(PREFIX + name)]
        for name, (text, values) in gauges.items():
            out += _head(name, text, "gauge")
            out += [f"{PREFIX}{name}{_braces(labels)} {value:.12g}" for labels, value in values]
        return "\n".join(out) + "\n"


def quantile(weights: Mapping[int, float], share: float) -> int | None:
    """The smallest value that `share` of the weight does not exceed; None without weight."""
    total, seen = sum(weights.values()), 0.0
    if total <= 0:
        return None
    for value in sorted(weights):
        seen += weights[value]
        if seen >= share * total:
            return value
    return max(weights)


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
