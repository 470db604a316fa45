"""Several artifacts of one source side by side: size, divergence with its error, speed, memory, and who dominates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import Receipt
from quantplan.artifact.results import Metric, Result, newest_result
from quantplan.artifact.store import Artifact
from quantplan.errors import BadValue, DifferentSources

MemoryOf = Callable[[Path], tuple[int, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A mean with two standard errors; `se` None where there is none."""

    value: float
    se: float | None

    @property
    def low(self) -> float:
        return self.value - 2 * (self.se or 0.0)

    @property
    def high(self) -> float:
        return self.value + 2 * (self.se or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One artifact. `kld` is the mean over the texts that all have; unknown is None. `dominated_by` names the
    smallest artifact that makes this one pointless: smaller and as good within the noise, or as large and better."""

    name: str
    quant: str
    sha256: str
    bytes: int
    kld: Measured | None
    kld_by_text: tuple[tuple[str, Measured], ...]
    ppl_ratio: float | None
    same_top: float | None
    decode_tokens_per_s: Measured | None
    prefill_tokens_per_s: Measured | None
    memory_bytes: tuple[int, ...] | None
    verdict: str | None
    folder: str
    dominated_by: str | None = None

    @property
    def pareto(self) -> bool | None:
        """Whether nothing compared is both smaller and better; None without a divergence."""
        return None if self.kld is None else self.dominated_by is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The artifacts, the smallest first, and what to know before reading them."""

    source: str
    texts: tuple[str, ...]
    devices: tuple[str, ...]
    artifacts: tuple[Compared, ...]
    warnings: tuple[str, ...]


def compare(artifacts: Sequence[Artifact], *, devices: tuple[str, ...], memory_of: MemoryOf) -> Comparison:
    """`memory_of` is the exact model's bytes by device of one GGUF. Raises DifferentSources, BadValue for fewer than
    two artifacts or the same one twice."""
    _check(artifacts)
    texts = _common_texts(artifacts)
    rows = sorted((_compared(one, texts, memory_of) for one in artifacts), key=lambda row: (row.bytes, row.name))
    rows = [replace(row, dominated_by=_dominator(row, rows)) for row in rows]
    source = artifacts[0].receipt.source
    return Comparison(
        source=str(source.get("repo") or source.get("name")), texts=texts, devices=devices, artifacts=tuple(rows),
        warnings=_warnings(artifacts, texts),
    )  # fmt: skip


def _check(artifacts: Sequence[Artifact]) -> None:
    if len(artifacts) < 2:
        raise BadValue(what="artifacts", value=None, why="to compare are two or more")
    seen: dict[str, Artifact] = {}
    for one in artifacts:
        sha256 = one.receipt.model_file.sha256
        if sha256 in seen:
            raise BadValue(what="artifact", value=str(one.folder), why=f"is the same file as {seen[sha256].folder}")
        seen[sha256] = one
        why = difference(artifacts[0].receipt, one.receipt)
        if why:
            raise DifferentSources(first=str(artifacts[0].folder), other=str(one.folder), why=why)


def difference(first: Receipt, other: Receipt) -> str | None:
    """Why two receipts are not of one source, or None: their weight files must have the same hashes."""
    mine, theirs = _weights(first), _weights(other)
    if mine and theirs:
        if mine == theirs:
            return None
        return f"the weights of {_named(first)} and of {_named(other)} have other hashes"
    same = all(first.source.get(key) == other.source.get(key) for key in ("repo", "revision", "name"))
    return None if same else f"{_named(first)} and {_named(other)}"


def _weights(receipt: Receipt) -> frozenset[str]:
    files = receipt.source.get("files") or ()
    ends = (".safetensors", ".bin", ".gguf", ".pth", ".pt")
    return frozenset(file["sha256"] for file in files if str(file["name"]).endswith(ends))


def _named(receipt: Receipt) -> str:
    source = receipt.source
    revision = f"@{source['revision'][:12]}" if source.get("revision") else ""
    return f"{source.get('repo') or source.get('name')}{revision}"


def _common_texts(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """Names of the texts on which every measured artifact has a divergence, in the first one's order."""
    by_artifact = [list(_divergences(one.gate)) for one in artifacts if one.gate is not None]
    measured = [texts for texts in by_artifact if texts]
    return tuple(text for text in measured[0] if all(text in other for other in measured)) if measured else ()


def _divergences(result: Result) -> dict[str, Metric]:
    return {m.corpus or "text": m for m in result.metrics if m.name == "kld_mean" and m.value is not None}


def _compared(one: Artifact, texts: tuple[str, ...], memory_of: MemoryOf) -> Compared:
    divergences = _divergences(one.gate) if one.gate is not None else {}
    by_text = [(text, _measured(divergences[text])) for text in texts if text in divergences]
    ratios = _values(one.gate, "ppl_ratio", texts)
    tops = _values(one.gate, "same_top", texts)
    bench = newest_result(one.folder, "bench")
    return Compared(
        name=one.model.stem,
        quant=one.receipt.quant,
        sha256=one.receipt.model_file.sha256,
        bytes=sum(file.bytes for file in one.receipt.files if file.name.endswith(".gguf")),
        kld=_mean([measured for _, measured in by_text]),
        kld_by_text=tuple(by_text),
        ppl_ratio=math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None,
        same_top=sum(tops) / len(tops) if tops else None,
        memory_bytes=memory_of(one.model),
        verdict=one.gate.verdict.value if one.gate is not None else None,
        folder=str(one.folder),
        decode_tokens_per_s=_speed(bench, "decode_tokens_per_s"),
        prefill_tokens_per_s=_speed(bench, "prefill_tokens_per_s"),
    )


def _measured(metric: Metric) -> Measured:
    assert metric.value is not None
    return Measured(value=metric.value, se=metric.se)


def _values(result: Result | None, name: str, texts: tuple[str, ...]) -> list[float]:
    if result is None:
        return []
    found = [m for m in result.metrics if m.name == name and (m.corpus or "text") in texts]
    return [m.value for m in found if m.value is not None and m.value > 0]


def _speed(bench: Result | None, name: str) -> Measured | None:
    found = [m for m in bench.metrics if m.name == name and m.value is not None] if bench is not None else []
    return _measured(found[0]) if found else None


def _mean(measured: Sequence[Measured]) -> Measured | None:
    """Each text counts the same; errors of the texts are independent."""
    if not measured:
        return None
    errors = [m.se for m in measured if m.se is not None]
    se = math.sqrt(sum(e**2 for e in errors)) / len(measured) if len(errors) == len(measured) else None
    return Measured(value=sum(m.value for m in measured) / len(measured), se=se)


def _dominator(row: Compared, rows: Sequence[Compared]) -> str | None:
    return next((other.name for other in rows if other is not row and dominates(other, row)), None)


def dominates(other: Compared, row: Compared) -> bool:
    """Whether `row` gives nothing for its size: a smaller one is as good within the noise of both (two standard
    errors of the difference), or one of its size is better beyond it."""
    if other.kld is None or row.kld is None:
        return False
    noise = 2 * math.hypot(other.kld.se or 0.0, row.kld.se or 0.0)
    if other.bytes < row.bytes:
        return other.kld.value - row.kld.value <= noise
    return other.bytes == row.bytes and row.kld.value - other.kld.value > noise


def _warnings(artifacts: Sequence[Artifact], texts: tuple[str, ...]) -> tuple[str, ...]:
    told = []
    missing = [one.folder.name for one in artifacts if one.gate is None or not _divergences(one.gate)]
    if missing:
        told.append(f"no divergence was measured of {', '.join(missing)}")
    hashes = {tuple(sorted((t.name, t.sha256) for t in one.receipt.texts if t.name in texts)) for one in artifacts}
    if texts and len(hashes) > 1:
        told.append("the artifacts were measured on unlike texts: their divergences do not compare")
    settings = {str(one.gate.tool.get("settings")) for one in artifacts if one.gate is not None}
    if len(settings) > 1:
        told.append("the artifacts were measured with unlike settings: their divergences compare roughly")
    stale = [one.folder.name for one in artifacts if one.gate and one.gate.artifact_sha256 != _sha256(one)]
    if stale:
        told.append(f"the newest gate result of {', '.join(stale)} is about another file")
    return tuple(told)


def _sha256(one: Artifact) -> str:
    return one.receipt.model_file.sha256


def comparison_rows(found: Comparison) -> list[dict[str, Any]]:
    """Flat rows for CSV and Parquet, and for `compare --json`."""
    rows = []
    for one in found.artifacts:
        row: dict[str, Any] = {
            "name": one.name, "quant": one.quant, "bytes": one.bytes, "sha256": one.sha256, "verdict": one.verdict,
            "pareto": one.pareto, "dominated_by": one.dominated_by,
        }  # fmt: skip
        row |= _flat("kld_mean", one.kld)
        for text, measured in one.kld_by_text:
            row |= _flat(f"kld_mean_{text}", measured)
        row |= {"ppl_ratio": one.ppl_ratio, "same_top": one.same_top}
        row |= _flat("decode_tokens_per_s", one.decode_tokens_per_s)
        row |= _flat("prefill_tokens_per_s", one.prefill_tokens_per_s)
        memory = one.memory_bytes or (None,) * len(found.devices)
        row |= {f"memory_{device}_bytes": n for device, n in zip(found.devices, memory, strict=True)}
        rows.append(row | {"folder": one.folder})
    return rows


def _flat(name: str, measured: Measured | None) -> dict[str, float | None]:
    return {name: measured.value if measured else None, f"{name}_se": measured.se if measured else None}
