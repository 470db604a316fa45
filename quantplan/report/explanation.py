"""Where every number of a recommendation comes from: its formula, the inputs, the source."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Plan, PlannedDevice
from quantplan.model.facts import LayerFacts, ModelFacts
from quantplan.report.recommendation import rate
from quantplan.units import MIB, format_size

_WIDTH = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One number: what it is, its value with a unit, how it came about."""

    what: str
    value: str
    how: str


def explain(
    plan: Plan, facts: ModelFacts, *, cells: int, drivers: Mapping[str, str], arithmetic: Mapping[str, float],
    depth: int, searched: str, threads: Sequence[str],
) -> tuple[Explained, ...]:  # fmt: skip
    """All numbers of the plan, in the order they are shown."""
    told = [Explained(what="model", value=f"{facts.parameters:,} parameters", how=facts.origin.value)]
    for device in plan.memory:
        told += _memory(device, plan, facts, cells, drivers)
    told += _figures(plan, depth, arithmetic)
    told += [Explained(what=f"margin {m.device}", value=format_size(m.bytes), how=f"stays free for {m.why}")
             for m in plan.margin]  # fmt: skip
    told.append(
        Explained(what="prompt cache", value=format_size(plan.cache_ram_bytes),
                  how="half of what RAM has left beside the plan and its margin, at most 8,192 MiB (the server's own)")
    )  # fmt: skip
    told += [Explained(what="threads", value=said.split(":")[0], how=said.partition(": ")[2]) for said in threads]
    told.append(Explained(what="search", value=searched, how="best first by upper bounds, confirmed by exact memory"))
    return tuple(told)


def _memory(
    device: PlannedDevice, plan: Plan, facts: ModelFacts, cells: int, drivers: Mapping[str, str]
) -> list[Explained]:
    name = device.name
    told = [
        Explained(what=f"{name} weights", value=_mib(device.model_bytes),
                  how=f"every tensor at {plan.quant} where this placement puts it; embeddings stay on the host"),
        Explained(what=f"{name} cache", value=_mib(device.context_bytes), how=_cache(plan, facts, cells)),
        Explained(what=f"{name} compute", value=_mib(device.compute_bytes),
                  how="peak of the engine's compute graph, played through its allocator (llama.cpp 0c1e570)"),
    ]  # fmt: skip
    if device.output_bytes:
        how = f"{plan.n_parallel} slot(s) × {facts.n_vocab:,} logits × 4 bytes"
        told.append(Explained(what=f"{name} output", value=_mib(device.output_bytes), how=how))
    if device.overhead_bytes:
        told.append(Explained(what=f"{name} driver", value=_mib(device.overhead_bytes), how=drivers.get(name, "")))
    return told


def _cache(plan: Plan, facts: ModelFacts, cells: int) -> str:
    counted: dict[LayerFacts, int] = {}
    for layer in facts.layers:
        counted[layer] = counted.get(layer, 0) + 1
    parts = []
    for layer, n in counted.items():
        if layer.has_kv and layer.n_head_kv:
            swa = f" in a window of {facts.n_swa:,}" if layer.is_swa and facts.n_swa else ""
            parts.append(f"{n} layers × {layer.n_head_kv} KV heads × ({layer.n_embd_head_k} K in {plan.type_k} + "
                         f"{layer.n_embd_head_v} V in {plan.type_v}){swa}")  # fmt: skip
        elif layer.n_embd_r or layer.n_embd_s:
            parts.append(
                f"{n} layers × {layer.n_embd_r + layer.n_embd_s:,} × 4 bytes of state × {plan.n_parallel} slots"
            )
    return f"{'; '.join(parts) or 'no layer keeps any'}; {cells:,} cells (all devices together)"


def _figures(plan: Plan, depth: int, numbers: Mapping[str, float]) -> list[Explained]:
    told = []
    for what, figure in (("decode", plan.decode_tokens_per_s), ("prompt", plan.prefill_tokens_per_s)):
        if figure is not None:
            value = f"{rate(figure.value)} tokens/s ({rate(figure.low)} to {rate(figure.high)})"
            told.append(Explained(what=what, value=value, how=f"at {plan.n_ctx_per_slot:,} tokens; {figure.origin}"))
    if plan.quality is not None and plan.quality.kld_mean is not None:
        told.append(Explained(what="quality", value=f"{plan.quality.kld_mean:.2g} nats a token",
                              how=plan.quality.origin))  # fmt: skip
    how = (
        f"one request at {depth:,} tokens: {numbers['request_s']:.3g} s; speed ÷ (speed + 20) × "
        f"({numbers['harm_nats']:g} ÷ ({numbers['harm_nats']:g} + {numbers['damage_nats']:.2g}))"
        f"^{numbers['weight']:g} × "
        f"{numbers['cache_worth']:g} for the cache (docs/plans.md)"
    )
    told.append(Explained(what="worth", value=f"{numbers['worth']:.3f}", how=how))
    return told


def explained_text(told: Sequence[Explained]) -> tuple[str, ...]:
    """The lines of --explain."""
    lines = ["", "Where numbers come from"]
    name, value = (max(len(getattr(one, key)) for one in told) for key in ("what", "value"))
    indent = " " * (2 + name + 2 + value + 2)
    for one in told:
        head = f"  {one.what:<{name}}  {one.value:<{value}}  "
        wide = max(40, _WIDTH + 30 - len(indent))
        wrapped = textwrap.wrap(one.how, wide) or [""]
        lines.append(head + wrapped[0])
        lines += [indent + more for more in wrapped[1:]]
    return tuple(lines)


def _mib(n_bytes: int) -> str:
    return f"{-(-n_bytes // MIB):,} MiB"
