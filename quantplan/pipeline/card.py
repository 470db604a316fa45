"""The model card of an artifact: what it is made from, with what, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from quantplan.artifact.receipt import Receipt
from quantplan.artifact.results import Metric
from quantplan.pipeline.gate import Judgement
from quantplan.units import format_size

_SHOWN_NAMES = 12
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")


def model_card(receipt: Receipt, *, name: str, licence: str | None, engine: str, judgement: Judgement) -> str:
    """Markdown with the hub's front matter."""
    source = receipt.source
    base = str(source.get("repo") or source.get("name") or name)
    front = [f"base_model: {_yaml(base)}", "base_model_relation: quantized"]
    front += [f"license: {_yaml(licence)}"] if licence else []
    front += ["library_name: gguf", f"tags: [gguf, quantized, {receipt.quant}]", "---"]
    at = f" at `{source['revision']}`" if source.get("revision") else ""
    lines = [
        "---", *front, "",
        f"# {name} {receipt.quant}", "",
        f"A {receipt.quant} quantization of `{base}`{at}, made and measured by quantplan with llama.cpp {engine}.", "",
        *file_lines(receipt),
        f"- verdict: **{judgement.verdict.value}** ({judgement.reason})",
        *made_lines(receipt), "",
        *measured_table(judgement.metrics), "",
        "Against the 16-bit GGUF of the same source, on the same tokens. How it was made is in `artifact.json`,",
        "how it was measured in `results/`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _yaml(text: str) -> str:
    """A scalar that YAML reads as this very text."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def file_lines(receipt: Receipt) -> Iterator[str]:
    """Every file with its size and hash."""
    for file in receipt.files:
        yield f"- file: `{file.name}`, {format_size(file.bytes)}, sha256 `{file.sha256}`"


def made_lines(receipt: Receipt) -> Iterator[str]:
    """What a reader must know of how it was made."""
    if receipt.imatrix is not None:
        text = f" from `{receipt.calibration.name}`" if receipt.calibration else ""
        yield f"- importance matrix: {receipt.imatrix['n_chunks']} chunks{text}{_lacking(receipt.imatrix)}"
    if receipt.fallbacks:
        yield f"- tensors in another type than the preset's: {_some(receipt.fallbacks)}"
    if receipt.overrides:
        yield "- tensor types were set over the preset: see `overrides` in `artifact.json`"


def _lacking(imatrix: Mapping[str, object]) -> str:
    without = imatrix.get("without_data")
    return f"; without data: {_some(without)}" if isinstance(without, (list, tuple)) and without else ""


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(f"`{name}`" for name in names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def measured_table(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """One row a text; nothing where nothing was measured."""
    rows = _rows(metrics)
    head = "| text | mean KLD (nats) | ± 2 SE | limit | PPL ratio | same top token | tokens |"
    return (head, "|---|---|---|---|---|---|---|", *rows) if rows else ()


def _rows(metrics: Sequence[Metric]) -> list[str]:
    corpora: dict[str, dict[str, Metric]] = {}
    for metric in metrics:
        corpora.setdefault(metric.corpus or "all", {})[metric.name] = metric
    return [_row(corpus, found) for corpus, found in corpora.items() if "kld_mean" in found]


def _row(corpus: str, found: Mapping[str, Metric]) -> str:
    kld = found["kld_mean"]
    cells = (
        _number(kld.value, 5), _number(2 * kld.se if kld.se is not None else None, 5), _number(kld.limit, 5),
        _number(found["ppl_ratio"].value if "ppl_ratio" in found else None, 4),
        _number(found["same_top"].value if "same_top" in found else None, 2, percent=True), f"{kld.n:,}",
    )  # fmt: skip
    return f"| {corpus} | {' | '.join(cells)} |"


def _number(value: float | None, digits: int, *, percent: bool = False) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f} %" if percent else f"{value:.{digits}f}"
