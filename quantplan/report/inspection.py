"""What `inspect` tells of a model: facts, and its size at every preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantplan.model.facts import ModelFacts
from quantplan.model.gguf_header import GgufHeader
from quantplan.quant.file_size import source_kv_bytes
from quantplan.quant.presets import ALIASES, CHANGED_BY_IMATRIX, PRESETS, PresetRefused, apply_preset
from quantplan.units import format_size

SHOWN = tuple(name for name in PRESETS if name not in ALIASES)


def sizes(facts: ModelFacts, header: GgufHeader | None = None) -> dict[str, dict[str, Any] | None]:
    """The contract's data.sizes: preset to sizes; None where llama-quantize knows no type for a tensor's shape."""
    kv_bytes = (
        None if header is None else source_kv_bytes(facts.metadata, facts.tensors, data_offset=header.data_offset)
    )
    found = {name: _entry(facts, name, kv_bytes) for name in SHOWN}
    return {name: found[ALIASES.get(name, name)] for name in PRESETS}


def _entry(facts: ModelFacts, preset: str, kv_bytes: int | None) -> dict[str, Any] | None:
    try:
        plain = apply_preset(facts.tensors, facts.metadata, preset, kv_bytes=kv_bytes)
    except PresetRefused:
        return None
    entry: dict[str, Any] = dict(plain.to_json())
    if preset in CHANGED_BY_IMATRIX:
        guided = apply_preset(facts.tensors, facts.metadata, preset, with_imatrix=True)
        if guided.tensors != plain.tensors:
            # the file names its imatrix in its metadata, so only the tensors' bytes are known
            entry["with_imatrix"] = {key: value for key, value in guided.to_json().items() if key != "needs_imatrix"}
    if plain.fallbacks:
        entry["fallbacks"] = list(plain.fallbacks)
    if plain.requantized:
        entry["requantizes"] = len(plain.requantized)
    return entry


def inspection(
    facts: ModelFacts, found: Mapping[str, Any], *, tensors: bool, vision: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The contract's data. vision: parameters and bytes of the tensors that go to an mmproj file."""
    heads = sorted({layer.n_head for layer in facts.layers if layer.n_head})
    heads_kv = sorted({layer.n_head_kv for layer in facts.layers if layer.n_head_kv})
    data: dict[str, Any] = {
        "id": facts.id,
        "arch": facts.arch,
        "parameters": facts.parameters,
        "n_layer": facts.n_layer,
        "n_head": heads,
        "n_head_kv": heads_kv,
        "n_embd": facts.n_embd,
        "n_ctx_train": facts.n_ctx_train,
        "n_vocab": facts.n_vocab,
        "n_swa": facts.n_swa,
        "n_expert": facts.n_expert,
        "n_expert_used": facts.n_expert_used,
        "vision": vision,
        "tokenizer": facts.tokenizer if facts.tokenizer != "no_vocab" else None,
        "has_chat_template": facts.has_chat_template,
        "licence": facts.licence,
        "source": facts.source,
        "origin": facts.origin,
        "derived": facts.origin.name in ("CONFIG", "CATALOG"),
        "sizes": dict(found),
    }
    if tensors:
        data["tensors"] = [{"name": t.name, "shape": t.shape, "type": t.type_name} for t in facts.tensors]
    return data


def size_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """data.sizes as flat rows, a preset each; those that the model refuses are left out."""
    kept = ("tensor_bytes", "file_bytes", "bits_per_weight", "needs_imatrix")
    rows = ((name, sizes) for name, sizes in data["sizes"].items() if sizes)
    return [{"model": data["id"], "preset": name, **{key: sizes[key] for key in kept}} for name, sizes in rows]


def inspection_text(facts: ModelFacts, data: Mapping[str, Any]) -> str:
    """The same for reading: facts, then a row a preset, smallest first."""
    lines = [*_facts_lines(facts, data), "", f"{'preset':<10} {'size':>10} {'bits/w':>7}  types"]
    rows = [(name, data["sizes"][name]) for name in SHOWN if data["sizes"].get(name)]
    for name, row in sorted(rows, key=lambda item: item[1]["tensor_bytes"]):
        types = " ".join(f"{kind}:{n}" for kind, n in row["tensor_types"].items())
        notes = " (needs an imatrix)" if row["needs_imatrix"] else ""
        if row.get("with_imatrix"):
            notes += f" (with an imatrix {format_size(row['with_imatrix']['tensor_bytes'])})"
        lines.append(
            f"{name:<10} {format_size(row['tensor_bytes']):>10} {row['bits_per_weight']:>7.2f}  {types}{notes}"
        )
    refused = [name for name in SHOWN if not data["sizes"].get(name)]
    if refused:
        lines.append(f"llama-quantize has no type for some of its rows in: {', '.join(refused)}")
    if data.get("tensors"):
        lines += ["", *(f"{t['name']:<48} {t['type']:<8} {list(t['shape'])}" for t in data["tensors"])]
    return "\n".join(lines)


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(str(value) for value in values) or "none"


def _facts_lines(facts: ModelFacts, data: Mapping[str, Any]) -> list[str]:
    template = {True: "yes", False: "no", None: "unknown"}[facts.has_chat_template]
    rows = [
        ("architecture", facts.arch),
        ("parameters", f"{facts.parameters:,}"),
        ("layers", f"{facts.n_layer}, heads {_numbers(data['n_head'])}, KV heads {_numbers(data['n_head_kv'])}"),
        ("context", f"{facts.n_ctx_train:,} tokens" + (f", window {facts.n_swa:,}" if facts.n_swa else "")),
        ("vocabulary", f"{facts.n_vocab:,}"),
        ("experts", f"{facts.n_expert_used} of {facts.n_expert}" if facts.n_expert else None),
        ("vision tower", f"{data['vision']['parameters']:,} parameters, apart" if data["vision"] else None),
        ("chat template", template),
        ("licence", facts.licence or "unknown"),
        ("source", _source(facts)),
    ]
    return [facts.id, *(f"  {name:<14} {value}" for name, value in rows if value is not None)]


def _source(facts: ModelFacts) -> str:
    where = facts.source.repo or facts.source.file or facts.id
    revision = f" at {facts.source.revision}" if facts.source.revision else ""
    return f"{where}{revision} ({facts.origin.value})"
