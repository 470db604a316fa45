"""The worked cases of docs/plans.md: writes their table and tests/data/golden_plans.json.

    python scripts/golden_plans.py          # writes both
    python scripts/golden_plans.py --show   # prints the table

Run it after a change of the speed or quality tables, and read the difference: does each plan still make sense?
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from quantplan.cli import planning
from quantplan.hardware.profiles import load_profile
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.model.read import read_model
from quantplan.planner.request import PlanRequest
from quantplan.report.recommendation import rate
from quantplan.units import GIB, MIB

GOLDEN = ROOT / "tests" / "data" / "golden_plans.json"
DOCS = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- worked cases:begin (scripts/golden_plans.py) -->", "<!-- worked cases:end -->"

# Llama 2 is not in the catalog; these are the figures of its published configuration.
LLAMA_2 = {
    "Llama-2-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "Llama-2-13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


@dataclass(frozen=True)
class Case:
    title: str
    model: str
    machine: str
    asked: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("8B on a 12 GB RTX 4070 at 8k", "meta-llama/Llama-3.1-8B-Instruct", "rtx4070+32GB", {"n_ctx": 8192}),
    Case("8B on a 12 GB RTX 4070 at 32k", "meta-llama/Llama-3.1-8B-Instruct", "rtx4070+32GB", {"n_ctx": 32768}),
    Case("13B on 12 GB, every layer on the card", "Llama-2-13B", "rtx3060+32GB", {"n_ctx": 4096}),
    Case("7B Q5_K_M on a 6 GB GTX 1060", "Llama-2-7B", "gtx10606gb+16GB", {"quants": ("Q5_K_M",), "any_preset": True}),
    Case("7B on 16 GB at 8k", "mistralai/Mistral-7B-Instruct-v0.3", "rtx4060ti16gb+32GB", {"n_ctx": 8192}),
    Case("13B over two 12 GB RTX 3060", "Llama-2-13B", "2xrtx3060+32GB"),
    Case("70B on a 24 GB RTX 4090 with 64 GB RAM", "meta-llama/Llama-3.3-70B-Instruct", "rtx4090+64GB"),
    Case("30B-A3B on 8 GB, experts on the host", "Qwen/Qwen3-30B-A3B", "rtx4060+32GB"),
    Case("8B on a CPU with 16 GB", "meta-llama/Llama-3.1-8B-Instruct", "16GB"),
)


def facts_of(model: str) -> ModelFacts:
    if model not in LLAMA_2:
        return read_model(model)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "num_key_value_heads": LLAMA_2[model]["num_attention_heads"], **LLAMA_2[model],
    }  # fmt: skip
    header = header_from_config(config, path=model)
    return facts_from_metadata(header.metadata, header.tensors, id=model, origin=FactsOrigin.CONFIG)


def planned(case: Case) -> planning.Planned:
    return planning.recommend(facts_of(case.model), load_profile(case.machine), PlanRequest(**case.asked),
                              with_alternatives=False)  # fmt: skip


def golden(plan: planning.Planned) -> dict[str, Any]:
    """What a golden plan pins: the choice and its memory to the byte; speeds may move with their calibration."""
    told = plan.plan
    return {
        "quant": told.quant, "n_ctx_per_slot": told.n_ctx_per_slot, "n_parallel": told.n_parallel,
        "type_k": told.type_k, "type_v": told.type_v, "n_ubatch": told.n_ubatch, "n_gpu_layers": told.n_gpu_layers,
        "tensor_split": list(told.tensor_split), "n_cpu_moe": told.n_cpu_moe,
        "devices": list(told.devices) if told.devices is not None else None,
        "cache_ram_mib": told.cache_ram_bytes // MIB,
        "memory": {device.name: device.total_bytes for device in told.memory},
    }  # fmt: skip


def row(case: Case, plan: planning.Planned) -> str:
    told, n = plan.plan, plan.facts.n_layer + 1
    where = "CPU" if not told.n_gpu_layers else f"{told.n_gpu_layers} of {n} layers"
    if told.tensor_split:
        where += f" ({' + '.join(f'{count:g}' for count in told.tensor_split)})"
    if told.n_cpu_moe:
        where += f", experts of {told.n_cpu_moe} on the host"
    memory = ", ".join(
        f"{device.name} {device.total_bytes / GIB:.1f} of {(device.free_bytes or 0) / GIB:.1f} GiB"
        for device in told.memory
    )
    return (
        f"| {case.title} | {told.quant} | {told.n_ctx_per_slot:,} × {told.type_k} | {where} | "
        f"{rate(plan.choice.merits.decode)} | {memory} |"
    )


def table(plans: list[tuple[Case, planning.Planned]]) -> str:
    head = "| case | preset | context × cache | offload | tokens/s | memory |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(row(case, plan) for case, plan in plans)])


def main() -> None:
    os.environ["QUANTPLAN_STATE"] = str(ROOT / "nothing-measured")  # the published tables alone
    plans = [(case, planned(case)) for case in CASES]
    print(table(plans))
    if "--show" in sys.argv:
        return
    told = {case.title: golden(plan) for case, plan in plans}
    GOLDEN.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table(plans)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
