"""The model card of an artifact: what it is made from, with what, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantplan.artifact.receipt import FileEntry
from quantplan.artifact.results import Metric, Verdict
from quantplan.units import format_size


def model_card(
    *, name: str, quant: str, base_model: str, licence: str | None, file: FileEntry, engine: str,
    verdict: Verdict, reason: str, metrics: Sequence[Metric],
) -> str:  # fmt: skip
    """Markdown with the hub's front matter."""
    front = ["---", f"base_model: {base_model}", "base_model_relation: quantized"]
    front += [f"license: {licence}"] if licence else []
    front += ["library_name: gguf", f"tags: [gguf, quantized, {quant}]", "---"]
    lines = [
        *front, "",
        f"# {name} {quant}", "",
        f"A {quant} quantization of `{base_model}`, made and measured by quantplan with llama.cpp {engine}.", "",
        f"- file: `{file.name}`, {format_size(file.bytes)}",
        f"- sha256: `{file.sha256}`",
        f"- verdict: **{verdict.value}** ({reason})", "",
        "| text | mean KLD (nats) | ± 2 SE | limit | PPL ratio | same top token | tokens |",
        "|---|---|---|---|---|---|---|",
        *_rows(metrics), "",
        "Against the 16-bit GGUF of the same source, on the same tokens. How it was made is in `artifact.json`,",
        "how it was measured in `results/`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _rows(metrics: Sequence[Metric]) -> list[str]:
    corpora: dict[str, dict[str, Metric]] = {}
    for metric in metrics:
        corpora.setdefault(metric.corpus or "all", {})[metric.name] = metric
    return [_row(corpus, found) for corpus, found in corpora.items() if "kld_mean" in found]


def _row(corpus: str, found: Mapping[str, Metric]) -> str:
    kld, ratio, top = found["kld_mean"], found["ppl_ratio"], found["same_top"]
    return (
        f"| {corpus} | {kld.value:.5f} | {2 * (kld.se or 0):.5f} | {kld.limit or 0:.5f} | {ratio.value:.4f} "
        f"| {100 * (top.value or 0):.2f} % | {kld.n:,} |"
    )
