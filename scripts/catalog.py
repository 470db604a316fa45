"""Writes data/catalog.json: the models that quantplan knows without a network.

From a list of {name, hub_id, parameters, config} (configurations as transformers 5 writes them) and a table of
published models for their licences. What a configuration has at its class's default is left out again, so that the
file stays small; data/hf_defaults.json puts it back.

    python scripts/catalog.py --configs model_configs.json --published models_published.csv [--check]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_TARGET = _ROOT / "data" / "catalog.json"
_DROPPED = {
    "transformers_version", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "attention_dropout", "pretraining_tp", "hidden_act", "hidden_activation", "output_router_logits", "dtype",
    "router_aux_loss_coef", "resid_pdrop", "embd_pdrop", "router_jitter_noise", "hidden_dropout", "use_mamba_kernels",
    "rescale_prenorm_residual", "residual_in_fp32", "residual_dropout", "embedding_dropout", "residual_multiplier_",
}  # fmt: skip
_SUFFIXES = ("-Instruct", "-it", "-Chat", "-hf", "-instruct", "-chat", "-PT")
_MXFP4 = "the hub's experts are MXFP4: the converter repacks them and llama-quantize will not requantize them"
# How the hub's own files are stored where that is not bf16 (the configuration here is of the bf16 model).
_STORED = {
    "openai/gpt-oss-20b": _MXFP4,
    "openai/gpt-oss-120b": _MXFP4,
    "deepseek-ai/DeepSeek-V3": "the hub's weights are FP8: the converter dequantizes them to bf16",
    "MiniMaxAI/MiniMax-M2": "the hub's weights are FP8: the converter dequantizes them to bf16",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "the hub's checkpoint has an MTP layer more, which the converter includes",
    "zai-org/GLM-4.5-Air": "the hub's checkpoint has an MTP layer more, which the converter includes",
}  # fmt: skip


def _aliases(entry: dict[str, Any]) -> list[str]:
    bare = entry["hub_id"].split("/")[-1]
    names = [entry["name"], bare]
    names += [bare.removesuffix(suffix) for suffix in _SUFFIXES if bare.endswith(suffix)]
    return sorted({name for name in names if name != entry["hub_id"]}, key=lambda name: (name.lower(), name))


def _slim(config: dict[str, Any]) -> dict[str, Any]:
    """A null is kept where it stands against a default: q_lora_rank."""
    return {k: v for k, v in config.items() if k not in _DROPPED and (v is not None or k.endswith("_rank"))}


def build(configs: Path, published: Path) -> str:
    with published.open(newline="", encoding="utf-8") as file:
        licences = {row["name"].lower(): row["license"] for row in csv.DictReader(file) if row["license"]}
    rows = []
    for entry in json.loads(configs.read_text(encoding="utf-8")):
        row = {
            "id": entry["hub_id"],
            "name": entry["name"],
            "aliases": _aliases(entry),
            "parameters": entry["parameters"],
            "licence": licences.get(entry["hub_id"].lower()),
            "config": _slim(entry["config"]),
        }
        if entry["hub_id"] in _STORED:
            row["note"] = _STORED[entry["hub_id"]]
        if row.get("note") == _MXFP4:
            row["only_presets"] = ["MXFP4_MOE"]
        rows.append(row)
    rows.sort(key=lambda row: row["id"].lower())
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    source = "public configurations as transformers 5.23.0 writes them; licences from llmfit 1.1.17 (MIT)"
    return f'{{\n  "source": {json.dumps(source)},\n  "models": [\n{lines}\n  ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    args = parser.parse_args()
    text = build(args.configs, args.published)
    if args.check:
        sys.exit(0 if text == _TARGET.read_text(encoding="utf-8") else 1)
    _TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
